/* pass.def as data; apart from the manager, so that the manager can be tested with other passes. */
#include "compiler/pipeline.h"

#define T STAGE_T
#define K STAGE_K
static const struct pass_row rows[] = {
#define PASS(name, function, in, out, skippable, help) \
    {name, pass_##function, in, out, skippable, help},
#include "compiler/pass.def"
};

const struct pass_row *pass_rows(size_t *n)
{
    *n = sizeof rows / sizeof *rows;
    return rows;
}
