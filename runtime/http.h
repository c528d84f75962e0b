/* The sockets of the server: one thread runs libmicrohttpd and keeps what it does not know of, the
 * deadlines of every connection, who has gone, and who must give way when there are too many. */
#ifndef STRATA_RUNTIME_HTTP_H
#define STRATA_RUNTIME_HTTP_H
#include "runtime/service.h"

struct http;
/* Listens (*port: where) without taking connections yet. RT_user where it cannot be. */
enum rt_status http_open(const struct serve_options *o, struct http **out, int *port,
                         struct rt_error *err);
/* For service_open: `ready` of exchanges. */
struct service_hooks http_hooks(struct http *h);
/* Starts the thread. */
enum rt_status http_start(struct http *h, struct service *s, struct rt_error *err);
/* Ends all exchanges with an error that says that the server stops. */
void http_cut(struct http *h);
/* Connections with a request that is not answered to its end. */
int64_t http_busy(const struct http *h);
/* Ends the thread and closes all connections. */
void http_stop(struct http *h);
/* After http_stop, and when the service calls no hook any more. NULL is fine. */
void http_close(struct http *h);
#endif
