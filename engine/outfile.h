/* outfile.h - files that appear whole: written under a temporary name beside their place, made durable, then renamed.
 * No reader ever sees half a file, and what stood there stays until the new one is complete. */
#ifndef KG_OUTFILE_H
#define KG_OUTFILE_H

#include <sys/types.h>

#include "kigo.h"

typedef struct kg_outfile kg_outfile;

/* KG_ERR_IO where no file can be written at `path`, a directory or a device among it. */
int kg_outfile_open(const char *path, kg_outfile **out, kg_error *err);
int kg_outfile_write(kg_outfile *file, const void *bytes, size_t n_bytes, kg_error *err);
/* Give it its permissions, make it durable and put it in its place. */
int kg_outfile_commit(kg_outfile *file, mode_t mode, kg_error *err);
const char *kg_outfile_path(const kg_outfile *file);
/* Without a commit before, the temporary file is removed and the place is as it was. NULL allowed. */
void kg_outfile_close(kg_outfile *file);

#endif
