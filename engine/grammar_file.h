/* grammar_file.h - grammars as bytes: the nodes that one was built from, for constraints in files (constraint.h). */
#ifndef KG_GRAMMAR_FILE_H
#define KG_GRAMMAR_FILE_H

#include "grammar.h"

/* Append a compiled grammar. */
int kg_grammar_save(const kg_grammar *grammar, kg_bytes *out, kg_error *err);
/* Build and compile one from such bytes, which are not trusted, and of which nothing may be left. KG_ERR_FORMAT: they
 * say no grammar. */
int kg_grammar_load(kg_string bytes, kg_grammar **out, kg_error *err);

#endif
