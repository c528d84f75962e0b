/* Of programs for CPUs, which are static and load no driver. */
#include "runtime/app.h"

enum rt_status app_device_open(struct app *p, const struct plan_set *set, struct lm **out,
                               struct rt_error *err)
{
    (void)set;
    *out = NULL;
    return rt_fail(err, RT_user, "'%s' has a model for %s, and this program runs on CPUs", p->path,
                   p->about.target);
}
