/* host.h - the plug-in's way back: functions of alloc.h, plan.h, gguf.h, adapter.h and backend.h that it uses, under
 * their own names, forwarded through the table of plugin.h. */
#ifndef KG_CUDA_HOST_H
#define KG_CUDA_HOST_H

#include "alloc.h"
#include "error.h"
#include "plugin.h"

const kg_plugin_host *kg_host(void);
/* The first call counts: the host is one and stays. */
void kg_host_set(const kg_plugin_host *host);

#endif
