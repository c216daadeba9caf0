/* confine.h - how kigo-worker locks itself in before it reads a script. There is no way back. */
#ifndef KG_CONFINE_H
#define KG_CONFINE_H

#include <stddef.h>
#include <stdint.h>

#include "kigo.h"

/* Close every descriptor from `first_fd` on, give up files (Landlock), processes, time and memory (`memory` bytes more
 * than there are now), and every system call but those that go on working: reading and writing descriptor `socket`,
 * memory, exit. *layers: KG_LAYER_* of worker.h. KG_ERR_UNSUPPORTED: the kernel has no seccomp filter for this
 * processor, or refuses it. */
int kg_confine(int socket, int first_fd, size_t memory, uint32_t *layers, kg_error *err);

#endif
