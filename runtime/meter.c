#include "runtime/meter.h"
#include "base/io.h"
#include "runtime/mem.h"
#include "runtime/progress.h"
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const char *size_text(const struct meter *m, double n, char buf[16])
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB"};
    int u = 0;
    if (m->items) {
        snprintf(buf, 16, "%.0f", n);
        return buf;
    }
    while (n >= 1000 && u < 4) n /= 1000, u++;
    snprintf(buf, 16, u && n < 100 ? "%.1f %s" : "%.0f %s", n, unit[u]);
    return buf;
}

const char *meter_text(const struct meter *m, uint64_t done, double seconds, int width, char *buf,
                       int n)
{
    enum { BAR_MAX = 30, BAR_MIN = 8 };
    char a[16], b[16], c[16], left[96], right[96] = "", bar[80] = "";
    double rate = seconds > 0 ? (double)done / seconds : 0;
    if (m->total && done > m->total) done = m->total;
    if (m->total) {
        snprintf(left, sizeof left, "%s %s of %s", m->what, size_text(m, (double)done, a),
                 size_text(m, (double)m->total, b));
        snprintf(right, sizeof right, "%s/s  %s left", size_text(m, rate, a),
                 duration_text(rate > 0 ? (double)(m->total - done) / rate : -1, c));
    } else {
        snprintf(left, sizeof left, "%s %s", m->what, size_text(m, (double)done, a));
        snprintf(right, sizeof right, "%s/s", size_text(m, rate, b));
    }
    int cells = width - 1 - (int)(strlen(left) + strlen(right)) - 6;
    if (cells > BAR_MAX) cells = BAR_MAX;
    if (m->total && cells >= BAR_MIN) {
        int full = (int)((double)done / (double)m->total * cells);
        snprintf(bar, sizeof bar, "[%.*s%s%.*s]  ", full,
                 "==============================", full < cells ? ">" : "",
                 full < cells ? cells - full - 1 : 0, "                              ");
    }
    snprintf(buf, (size_t)n, "%s  %s%s", left, bar, right);
    if (width >= 1 && strlen(buf) > (size_t)width - 1) buf[width - 1] = 0;
    return buf;
}

void meter_start(struct meter *m, int fd, const char *what, uint64_t total)
{
    double now = mem_seconds();
    *m = (struct meter){
        .fd = fd, .what = what, .total = total, .first = now, .drawn = now, .terminal = isatty(fd)};
    m->drawn += 0.4;
}

void meter_step(struct meter *m, uint64_t done)
{
    if (!m->terminal) return;
    double now = mem_seconds();
    if (now - m->drawn < 0.1) return;
    struct winsize w;
    int width = ioctl(m->fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
    char text[256], out[300];
    meter_text(m, done, now - m->first, width, text, sizeof text);
    int n = snprintf(out, sizeof out, "\r%s\033[K", text);
    io_write_all(m->fd, out, (size_t)n); /* a closed terminal must not stop the work */
    m->drawn = now;
    m->shown = true;
}

void meter_end(struct meter *m)
{
    if (m->shown) io_write_all(m->fd, "\r\033[K", 4);
    m->shown = false;
}
