#include "backend.h"

const kg_backend kg_backend_cpu = {.name = "cpu"};
