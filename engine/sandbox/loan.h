/* loan.h - tensors in the hands of a script that nobody trusts: rows of numbers whose operations and memory are paid
 * for, and which end with the call that they were lent for. Their class is that of bind_tensor.c, less what makes
 * views. */
#ifndef KG_LOAN_H
#define KG_LOAN_H

#include <lua.h>

#include "tensor.h"

/* Define the class in this state, and put `tensor` and `zeros` into the environment (on top) as the table `kigo`. */
void kg_loan_open(lua_State *L);
/* Push a handle to the numbers of `buffer` (takes a reference of its own). Returns the loan, for kg_loan_end. Raises
 * for want of memory. */
kg_buffer *kg_loan_push(lua_State *L, kg_buffer *buffer);
/* The call is over: the numbers cannot be reached any more. Were they changed? */
bool kg_loan_end(kg_buffer *loan);

#endif
