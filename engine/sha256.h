/* sha256.h - SHA-256 as FIPS 180-4 describes it, written from the standard; spec/digest_spec.lua has its published test
 * vectors. It names model files in receipts and shows that a receipt was edited; no secret depends on it. */
#ifndef KG_SHA256_H
#define KG_SHA256_H

#include "kigo.h"

typedef struct kg_sha256 {
  uint32_t state[8];
  uint64_t n_bytes;
  uint8_t block[64]; /* the first n_bytes % 64 are waiting */
  bool is_portable;  /* without the processor's own instructions */
} kg_sha256;

enum { KG_SHA256_HEX = 65 }; /* bytes of the text form, with its NUL */

void kg_sha256_begin(kg_sha256 *sha);
void kg_sha256_begin_portably(kg_sha256 *sha); /* for specs: as where the processor has no instructions for it */
void kg_sha256_add(kg_sha256 *sha, const void *bytes, size_t n);
void kg_sha256_end(kg_sha256 *sha, char hex[KG_SHA256_HEX]);

/* Of a whole file, read in pieces. KG_ERR_IO names the path. */
int kg_sha256_file(const char *path, char hex[KG_SHA256_HEX], kg_error *err);

#endif
