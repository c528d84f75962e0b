/* Kernels as machine code that is linked: what `strata build` makes of the plans of a program. */
#ifndef STRATA_COMPILER_OBJECTS_H
#define STRATA_COMPILER_OBJECTS_H
#include "compiler/lower.h"
#include "runtime/cpu.h"
#include "runtime/status.h"

/* The kernels of some plans for one kind of processor, equal ones once. */
struct object_set {
    enum cpu_kind cpu;
    struct map seen; /* symbols */
    VEC(const char *) symbol;
    VEC(struct str) text; /* of each symbol */
};
void object_set_init(struct object_set *s, struct arena *a, enum cpu_kind cpu);
/* Adds the kernels of a plan, whose texts must live as long as the set. */
void object_set_add(struct object_set *s, struct arena *a, const struct lowered *l);
/* Adds one kernel. */
void object_set_text(struct object_set *s, struct arena *a, const char *symbol, struct str text);

typedef VEC(const char *) object_paths;
/* Compiles the sets in the folder `dir`, several files at the same time, or takes what the cache of
 * kernels has, and appends the paths of the objects to link. They define app_sets of runtime/app.h.
 * The same sets give the same bytes, wherever `dir` is and however many cores there are. RT_user
 * without a compiler. */
enum rt_status objects_make(struct arena *a, const char *dir, const struct object_set *set,
                            size_t n, object_paths *path, struct rt_error *err);
#endif
