/* bind_judge.h - Lua functions that decide at the points of a grammar. Texts are judged deep inside C, from any
 * coroutine or none, so the functions run on a thread of their own; what one raises is kept until the binding that
 * called C raises it again. They may use anything but the grammar that asks, and the model whose sequence it
 * constrains: these are amid something. Copies of a constraint share them: they are anchored in the registry as long as
 * somebody refers to them. */
#ifndef KG_BIND_JUDGE_H
#define KG_BIND_JUDGE_H

#include "bind.h"
#include "matcher.h"

/* Read the `points` of the options table at `index` (may be nil) for the grammar: { name = function(text) -> boolean }
 * or { name = { complete = function, partial = function } }. Raises where a point has no function, or a function no
 * point. Pushes a userdata that owns the functions, or nil for a grammar without points; *out refers to it. The caller
 * makes what keeps the judge and settles at once, whether that went well or not. `model`: of the sequence that will be
 * constrained, which is there whenever the judge is asked; NULL: none. */
void kg_push_judge(lua_State *L, int index, const kg_grammar *grammar, kg_model *model, kg_judge *out);
void kg_settle_judge(const kg_judge *judge);
/* Finish a call that failed and may have asked the judge: raise what a function raised, where that is the failure. */
void kg_raise_judged(lua_State *L, const kg_judge *judge, const kg_error *err);

#endif
