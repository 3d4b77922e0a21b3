/* A zero-cost OpenAI-compatible upstream: it replays a recording and computes nothing.
 *
 * upstream PORT STREAM_FILE JSON_FILE PACE_US
 *
 * A POST whose body has "stream": true gets STREAM_FILE (server-sent events, each its own HTTP
 * chunk); other POSTs get JSON_FILE. For the model `bench-paced` the events leave one by one,
 * PACE_US apart; for every other model the whole recording leaves in one write. Each answer has an
 * `id` of its own (a gateway may take it for the key of its record): the last digits of the
 * recorded one are counted up. GET answers the health checks of routers. One thread, poll(2),
 * keep-alive; listens on 127.0.0.1 only.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 1024, REQUEST_MAX = 1 << 16, EVENTS_MAX = 4096, ID_DIGITS = 12 };
static const char ID[] = "chatcmpl-5f1d0c8e2b6a4b0d9f3e7a1c4d2b8e60";

typedef struct {
    char *request;
    size_t have;
    char *burst, *whole; /* this connection's copies of the answers, for their ids */
    const char *out; /* what is being sent, never owned */
    size_t out_size;
    int event; /* next event of a paced stream, or -1 */
    uint64_t due_us;
} connection;

static struct pollfd fds[CONNECTIONS_MAX + 1];
static connection conns[CONNECTIONS_MAX + 1];
static int used = 1; /* slot 0 is the listener */

static char *burst, *whole, *models;
static size_t burst_size, whole_size, models_size;
static char *event_data[EVENTS_MAX + 2];
static size_t event_size[EVENTS_MAX + 2];
static size_t event_at[EVENTS_MAX]; /* where an event starts within `burst` */
static int events;
static size_t burst_ids[EVENTS_MAX], whole_ids[8];
static int burst_id_count, whole_id_count;
static unsigned long answers;
static uint64_t pace_us;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000u;
}

static char *read_file(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    if (!f) { perror(path); exit(2); }
    fseek(f, 0, SEEK_END);
    long n = ftell(f);
    rewind(f);
    char *data = malloc((size_t)n + 1);
    if (!data || fread(data, 1, (size_t)n, f) != (size_t)n) { perror(path); exit(2); }
    data[n] = 0;
    *size = (size_t)n;
    fclose(f);
    return data;
}

static char *with_length(const char *body, size_t n, size_t *size) {
    char *out = malloc(n + 256);
    int head = sprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                            "Content-Length: %zu\r\n\r\n", n);
    memcpy(out + head, body, n);
    *size = (size_t)head + n;
    return out;
}

static void add_event(const char *data, size_t n, const char *prefix, const char *suffix) {
    char *out = malloc(n + strlen(prefix) + strlen(suffix) + 32);
    int head = sprintf(out, "%s%zx\r\n", prefix, n);
    memcpy(out + head, data, n);
    int tail = sprintf(out + head + n, "\r\n%s", suffix);
    event_data[events] = out;
    event_size[events++] = (size_t)head + n + (size_t)tail;
}

/* Where the changing digits of the id are in an answer. */
static int find_ids(const char *answer, size_t n, size_t *at, int max) {
    int count = 0;
    const char *p = answer;
    while (count < max && (p = memmem(p, n - (size_t)(p - answer), ID, sizeof ID - 1))) {
        p += sizeof ID - 1;
        at[count++] = (size_t)(p - answer) - ID_DIGITS;
    }
    return count;
}

static void prepare(const char *stream_path, const char *json_path) {
    size_t n, m;
    char *json = read_file(json_path, &m);
    whole = with_length(json, m, &whole_size);
    const char *list = "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\"},"
                       "{\"id\":\"bench-paced\",\"object\":\"model\"}]}";
    models = with_length(list, strlen(list), &models_size);
    char *stream = read_file(stream_path, &n);
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                       "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (char *p = stream; *p && events < EVENTS_MAX;) {
        char *end = strstr(p, "\n\n");
        if (!end) break;
        end += 2;
        add_event(p, (size_t)(end - p), events ? "" : head, *end ? "" : "0\r\n\r\n");
        p = end;
    }
    for (int i = 0; i < events; i++) burst_size += event_size[i];
    burst = malloc(burst_size);
    size_t at = 0;
    for (int i = 0; i < events; i++) {
        event_at[i] = at;
        memcpy(burst + at, event_data[i], event_size[i]);
        at += event_size[i];
    }
    burst_id_count = find_ids(burst, burst_size, burst_ids, EVENTS_MAX);
    whole_id_count = find_ids(whole, whole_size, whole_ids, 8);
}

static void number(char *answer, const size_t *at, int count) {
    char digits[ID_DIGITS + 1];
    snprintf(digits, sizeof digits, "%0*lx", ID_DIGITS, answers++);
    for (int i = 0; i < count; i++) memcpy(answer + at[i], digits, ID_DIGITS);
}

static void drop(int i) {
    close(fds[i].fd);
    free(conns[i].request);
    free(conns[i].burst);
    free(conns[i].whole);
    used--;
    fds[i] = fds[used];
    conns[i] = conns[used];
}

/* Send what is pending; 0 when the connection is gone. */
static int flush_out(int i) {
    connection *c = &conns[i];
    while (c->out_size) {
        ssize_t n = send(fds[i].fd, c->out, c->out_size, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno == EAGAIN) { fds[i].events = POLLOUT; return 1; }
            return 0;
        }
        c->out += n;
        c->out_size -= (size_t)n;
    }
    fds[i].events = POLLIN;
    return 1;
}

static int next_event(int i) {
    connection *c = &conns[i];
    c->out = c->burst + event_at[c->event];
    c->out_size = event_size[c->event];
    c->event = c->event + 1 < events ? c->event + 1 : -1;
    c->due_us += pace_us;
    return flush_out(i);
}

/* The bytes of a complete request at the start of the buffer, 0 when more must come. */
static size_t request_size(connection *c, char **body, size_t *body_size) {
    char *end = memmem(c->request, c->have, "\r\n\r\n", 4);
    if (!end) return 0;
    *body = end + 4;
    size_t head = (size_t)(*body - c->request), length = 0;
    int chunked = 0;
    for (char *line = memchr(c->request, '\n', head); line && line < end;
         line = memchr(line, '\n', (size_t)(*body - line))) {
        line++;
        if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding: chunked", 26)) chunked = 1;
    }
    if (chunked) {
        char *last = memmem(*body, c->have - head, "0\r\n\r\n", 5);
        if (!last) return 0;
        length = (size_t)(last + 5 - *body);
    }
    *body_size = length;
    return c->have >= head + length ? head + length : 0;
}

static int answer(int i) {
    connection *c = &conns[i];
    char *body;
    size_t body_size, n;
    while (!c->out_size && c->event < 0 && (n = request_size(c, &body, &body_size)) > 0) {
        int post = !memcmp(c->request, "POST", 4);
        int stream = memmem(body, body_size, "\"stream\":true", 13) ||
                     memmem(body, body_size, "\"stream\": true", 14);
        int paced = stream && memmem(body, body_size, "bench-paced", 11) != NULL;
        memmove(c->request, c->request + n, c->have - n);
        c->have -= n;
        c->request[c->have] = 0;
        if (stream) number(c->burst, burst_ids, burst_id_count);
        else number(c->whole, whole_ids, whole_id_count);
        if (paced) {
            c->event = 0;
            c->due_us = now_us();
            if (!next_event(i)) return 0;
            continue;
        }
        c->out = !post ? models : stream ? c->burst : c->whole;
        c->out_size = !post ? models_size : stream ? burst_size : whole_size;
        if (!flush_out(i)) return 0;
    }
    return 1;
}

static int readable(int i) {
    connection *c = &conns[i];
    ssize_t n = recv(fds[i].fd, c->request + c->have, REQUEST_MAX - c->have - 1, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) return 0;
    if (n < 0) return 1;
    c->have += (size_t)n;
    c->request[c->have] = 0;
    return answer(i) && c->have < REQUEST_MAX - 1;
}

static void accept_all(void) {
    int fd, one = 1;
    while ((fd = accept(fds[0].fd, NULL, NULL)) >= 0) {
        if (used > CONNECTIONS_MAX) { close(fd); continue; }
        fcntl(fd, F_SETFL, O_NONBLOCK);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fds[used] = (struct pollfd){.fd = fd, .events = POLLIN};
        conns[used] = (connection){.request = malloc(REQUEST_MAX), .event = -1};
        conns[used].burst = malloc(burst_size);
        memcpy(conns[used].burst, burst, burst_size);
        conns[used].whole = malloc(whole_size);
        memcpy(conns[used].whole, whole, whole_size);
        used++;
    }
}

/* Milliseconds until the next paced event is due; sends those that are. */
static int run_paced(void) {
    uint64_t now = now_us(), soonest = UINT64_MAX;
    for (int i = used - 1; i > 0; i--) {
        connection *c = &conns[i];
        int alive = 1;
        while (alive && c->event >= 0 && !c->out_size && c->due_us <= now) alive = next_event(i);
        if (alive && c->event < 0 && !c->out_size && c->have) alive = answer(i);
        if (!alive) { drop(i); continue; }
        if (c->event >= 0 && c->due_us < soonest) soonest = c->due_us;
    }
    if (soonest == UINT64_MAX) return 1000;
    return soonest <= now ? 0 : (int)((soonest - now + 999) / 1000);
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "usage: upstream PORT STREAM JSON PACE_US\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    prepare(argv[2], argv[3]);
    pace_us = strtoull(argv[4], NULL, 10);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 1024)) { perror("bind"); return 2; }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    fds[0] = (struct pollfd){.fd = fd, .events = POLLIN};
    for (;;) {
        int timeout = run_paced();
        if (poll(fds, (nfds_t)used, timeout) < 0 && errno != EINTR) return 1;
        if (fds[0].revents) accept_all();
        for (int i = used - 1; i > 0; i--) {
            short seen = fds[i].revents;
            int alive = 1;
            if (seen & POLLOUT) alive = flush_out(i) && answer(i);
            if (alive && (seen & (POLLIN | POLLHUP | POLLERR))) alive = readable(i);
            fds[i].revents = 0;
            if (!alive) drop(i);
        }
    }
}
