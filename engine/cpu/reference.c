#include "backend.h"

const kg_backend kg_backend_reference = {.name = "reference"};
