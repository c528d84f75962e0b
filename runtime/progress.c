#include "runtime/progress.h"
#include "base/io.h"
#include "runtime/mem.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const double redraw_seconds = 0.1;

const char *duration_text(double seconds, char buf[16])
{
    if (!(seconds >= 0 && seconds < 86400.0 * 1000)) return strcpy(buf, "?");
    unsigned s = (unsigned)(seconds + 0.5);
    if (s < 60)
        snprintf(buf, 16, "%us", s);
    else if (s < 3600)
        snprintf(buf, 16, "%um%02us", s / 60, s % 60);
    else if (s < 86400)
        snprintf(buf, 16, "%uh%02um", s / 3600, s / 60 % 60);
    else
        snprintf(buf, 16, "%ud%02uh", s / 86400, s / 3600 % 24);
    return buf;
}

/* "812", "12.3k", "4.56M" */
static const char *rate_text(double v, char buf[16])
{
    if (!(v >= 0 && v < 1e15))
        return strcpy(buf, "?");
    else if (v < 1000)
        snprintf(buf, 16, "%.0f", v);
    else if (v < 1e6)
        snprintf(buf, 16, v < 1e5 ? "%.1fk" : "%.0fk", v / 1e3);
    else
        snprintf(buf, 16, "%.2fM", v / 1e6);
    return buf;
}

static const char *facts(const struct progress *p, char *buf, size_t n)
{
    char rate[16], left[16];
    double seconds = p->step_seconds > 0 ? p->step_seconds * (double)(p->total - p->done) : -1;
    snprintf(buf, n, "loss %.4f  %s tokens/s  %s left", p->loss,
             rate_text(p->tokens_per_second, rate),
             p->done >= p->total ? "0s" : duration_text(seconds, left));
    return buf;
}

const char *progress_text(const struct progress *p, int width, char *buf, size_t n)
{
    char right[128], left[64], bar[80] = "";
    enum { BAR_MAX = 30, BAR_MIN = 8 };
    snprintf(left, sizeof left, "step %llu/%llu", (unsigned long long)p->done,
             (unsigned long long)p->total);
    facts(p, right, sizeof right);
    int room = width - 1 - (int)(strlen(left) + strlen(right)) - 6; /* two gaps, two brackets */
    int cells = room > BAR_MAX ? BAR_MAX : room;
    if (cells >= BAR_MIN) {
        double share = p->total ? (double)p->done / (double)p->total : 1;
        int full = (int)(share * cells);
        snprintf(bar, sizeof bar, "[%.*s%s%.*s]  ", full,
                 "==============================", full < cells ? ">" : "",
                 full < cells ? cells - full - 1 : 0, "                              ");
    }
    snprintf(buf, n, "%s  %s%s", left, bar, right);
    if (width >= 1 && strlen(buf) > (size_t)width - 1) buf[width - 1] = 0;
    return buf;
}

static void put(const struct progress *p, const char *s, size_t n)
{
    io_write_all(p->fd, s, n); /* a closed terminal must not stop a run */
}

static int terminal_width(int fd)
{
    struct winsize w;
    return ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

static void draw(struct progress *p, double now)
{
    char text[512], out[600];
    progress_text(p, terminal_width(p->fd), text, sizeof text);
    int n = snprintf(out, sizeof out, "\r%s\033[K", text);
    put(p, out, (size_t)n);
    p->drawn = now;
    p->shown = true;
}

static void plain(const struct progress *p)
{
    char right[128], out[256];
    int n = snprintf(out, sizeof out, "step %llu/%llu  %s\n", (unsigned long long)p->done,
                     (unsigned long long)p->total, facts(p, right, sizeof right));
    put(p, out, (size_t)n);
}

void progress_start(struct progress *p, int fd, uint64_t first, uint64_t total, uint64_t every)
{
    double now = mem_seconds();
    *p = (struct progress){.fd = fd,
                           .terminal = isatty(fd),
                           .first = first,
                           .done = first,
                           .total = total,
                           .every = every ? every : 1,
                           .last = now,
                           .drawn = now - 1};
}

void progress_step(struct progress *p, uint64_t done, double loss, double tokens_per_second)
{
    double now = mem_seconds(), took = now - p->last;
    /* about the last 20 steps count */
    p->step_seconds = p->step_seconds > 0 ? p->step_seconds + (took - p->step_seconds) / 20 : took;
    p->last = now;
    p->done = done;
    p->loss = loss;
    p->tokens_per_second = tokens_per_second;
    if (!p->terminal) {
        if (done % p->every == 0 || done == p->total || done == p->first + 1) plain(p);
    } else if (now - p->drawn >= redraw_seconds || done == p->total) {
        draw(p, now);
    }
}

void progress_message(struct progress *p, const char *fmt, ...)
{
    char text[1024], out[1100];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    int n = snprintf(out, sizeof out, "%s%s\n", p->shown ? "\r\033[K" : "", text);
    put(p, out, (size_t)n);
    if (p->shown) draw(p, mem_seconds());
}

void progress_end(struct progress *p)
{
    if (!p->shown) return;
    draw(p, mem_seconds());
    put(p, "\n", 1);
    p->shown = false;
}
