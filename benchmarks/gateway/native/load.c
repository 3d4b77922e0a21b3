/* A closed-loop HTTP load client that checks every answer.
 *
 * load PORT REQUEST_FILE CLIENTS WARM_UP_MS MEASURE_MS REQUESTS_MAX MARKER STREAM
 *
 * CLIENTS connections to 127.0.0.1:PORT each send REQUEST_FILE (a whole HTTP/1.1 request, byte for
 * byte) again as soon as the answer to the last one is complete. An answer is good when its status
 * is 200, MARKER occurs in it, it holds a "usage" object and, where STREAM is 1, it ends with
 * `data: [DONE]`. Answers that end within the measured time count; it is MEASURE_MS, and goes on to
 * at most STRETCH times as much until there are two answers for each client. With REQUESTS_MAX > 0
 * the run ends after that many answers in all. Prints one JSON object; times in microseconds.
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

enum { CLIENTS_MAX = 512, ANSWER_MAX = 1 << 18, SAMPLES_MAX = 4000000, STRETCH = 6 };

typedef struct {
    char *raw; /* the answer as it came */
    size_t have, scanned; /* bytes read; bytes whose HTTP chunks were looked at */
    size_t body; /* where the body starts, 0 while the header is incomplete */
    long length; /* Content-Length, -1: chunked */
    size_t sent;
    uint64_t begun_ns, first_ns;
} client;

static struct pollfd fds[CLIENTS_MAX];
static client clients[CLIENTS_MAX];
static char *request;
static size_t request_size;
static const char *marker;
static int port, stream_expected;
static uint64_t measure_from_ns, measure_to_ns;
static uint32_t *latency, *first; /* in tenths of a microsecond */
static size_t samples;
static long good, bad, events, bytes, connects, finished, requests_max, started;
static char first_bad[400];

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void open_connection(int i) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) { perror("connect"); exit(3); }
    fcntl(fd, F_SETFL, O_NONBLOCK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fds[i] = (struct pollfd){.fd = fd, .events = POLLIN};
    connects++;
}

static void send_request(int i) {
    client *c = &clients[i];
    while (c->sent < request_size) {
        ssize_t n = send(fds[i].fd, request + c->sent, request_size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) { fds[i].events = POLLIN | POLLOUT; return; }
        if (n < 0) { c->sent = request_size; break; } /* the read side reports it */
        c->sent += (size_t)n;
    }
    fds[i].events = POLLIN;
}

static void begin(int i) {
    client *c = &clients[i];
    if (requests_max && started >= requests_max) { fds[i].events = 0; return; }
    started++;
    c->have = c->scanned = c->body = c->sent = 0;
    c->first_ns = 0;
    c->length = -1;
    c->begun_ns = now_ns();
    send_request(i);
}

/* 1 when the answer is complete, 0 when more must come, -1 when it is no HTTP. */
static int complete(client *c) {
    if (!c->body) {
        char *end = memmem(c->raw, c->have, "\r\n\r\n", 4);
        if (!end) return 0;
        c->body = c->scanned = (size_t)(end + 4 - c->raw);
        for (char *line = memchr(c->raw, '\n', c->body); line && line < end;
             line = memchr(line, '\n', c->body - (size_t)(line - c->raw))) {
            line++;
            if (!strncasecmp(line, "content-length:", 15)) c->length = atol(line + 15);
        }
    }
    if (!c->first_ns && c->have > c->body && memmem(c->raw + c->body, c->have - c->body, "{", 1))
        c->first_ns = now_ns();
    if (c->length >= 0) return c->have >= c->body + (size_t)c->length;
    for (;;) { /* hop over the HTTP chunks that are there */
        char *at = c->raw + c->scanned, *stop;
        if (c->have - c->scanned < 5) return 0;
        char *line = memchr(at, '\n', c->have - c->scanned);
        if (!line) return 0;
        unsigned long n = strtoul(at, &stop, 16);
        if (stop == at) return -1;
        size_t next = (size_t)(line + 1 - c->raw) + n + 2;
        if (next > c->have) return 0;
        c->scanned = next;
        if (n == 0) return 1;
    }
}

static void judge(client *c) {
    uint64_t now = now_ns();
    char *body = c->raw + c->body;
    size_t n = c->have - c->body;
    int ok = !memcmp(c->raw + 8, " 200", 4) && memmem(body, n, marker, strlen(marker)) &&
             (memmem(body, n, "\"usage\":{", 9) || memmem(body, n, "\"usage\": {", 10)) &&
             (!stream_expected || memmem(body, n, "data: [DONE]", 12));
    finished++;
    if (!ok && !bad)
        for (size_t k = 0, to = 0; k < c->have && to < sizeof first_bad - 1; k++)
            first_bad[to++] = strchr("\"\\", c->raw[k]) || c->raw[k] < 32 ? ' ' : c->raw[k];
    if (!ok) bad++;
    if (now < measure_from_ns || now > measure_to_ns || !ok || samples == SAMPLES_MAX) return;
    good++;
    bytes += (long)c->have;
    if (stream_expected)
        for (char *p = body; (p = memmem(p, n - (size_t)(p - body), "data:", 5)); p += 5) events++;
    latency[samples] = (uint32_t)((now - c->begun_ns) / 100);
    first[samples++] = (uint32_t)((c->first_ns - c->begun_ns) / 100);
}

static void readable(int i) {
    client *c = &clients[i];
    ssize_t n = recv(fds[i].fd, c->raw + c->have, ANSWER_MAX - c->have - 1, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        c->have += (size_t)n;
        c->raw[c->have] = 0;
    }
    int state = n > 0 ? complete(c) : -1;
    if (state == 0 && c->have < ANSWER_MAX - 1) return;
    if (state == 1) {
        int closing = memmem(c->raw, c->body, "onnection: close", 16) != NULL;
        judge(c);
        if (closing) { close(fds[i].fd); open_connection(i); }
    } else {
        if (!bad) snprintf(first_bad, sizeof first_bad, "the connection closed within an answer");
        bad++;
        finished++;
        close(fds[i].fd);
        open_connection(i);
    }
    begin(i);
}

static int by_value(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void print_times(const char *name, uint32_t *values) {
    qsort(values, samples, sizeof *values, by_value);
    double sum = 0;
    for (size_t k = 0; k < samples; k++) sum += values[k];
    size_t last = samples ? samples - 1 : 0;
    printf("\"%s\":{\"p50\":%.1f,\"p99\":%.1f,\"mean\":%.1f}", name,
           samples ? values[last / 2] / 10.0 : 0, samples ? values[last * 99 / 100] / 10.0 : 0,
           samples ? sum / (double)samples / 10 : 0);
}

int main(int argc, char **argv) {
    if (argc != 9) { fprintf(stderr, "usage: see the head of load.c\n"); return 2; }
    signal(SIGPIPE, SIG_IGN);
    port = atoi(argv[1]);
    FILE *f = fopen(argv[2], "rb");
    if (!f) { perror(argv[2]); return 2; }
    request = malloc(1 << 20);
    request_size = fread(request, 1, 1 << 20, f);
    fclose(f);
    int count = atoi(argv[3]);
    if (count < 1 || count > CLIENTS_MAX) { fprintf(stderr, "clients: 1 to 512\n"); return 2; }
    uint64_t start = now_ns();
    measure_from_ns = start + strtoull(argv[4], NULL, 10) * 1000000u;
    measure_to_ns = measure_from_ns + strtoull(argv[5], NULL, 10) * 1000000u;
    requests_max = atol(argv[6]);
    marker = argv[7];
    stream_expected = atoi(argv[8]);
    latency = malloc(SAMPLES_MAX * sizeof *latency);
    first = malloc(SAMPLES_MAX * sizeof *first);
    for (int i = 0; i < count; i++) {
        clients[i].raw = malloc(ANSWER_MAX);
        open_connection(i);
    }
    for (int i = 0; i < count; i++) begin(i);
    uint64_t enough_ns = measure_to_ns;
    measure_to_ns += (STRETCH - 1) * (measure_to_ns - measure_from_ns);
    while (bad < 1000 && !(requests_max && finished >= requests_max)) {
        uint64_t now = now_ns();
        int few = !requests_max && good < 2L * count;
        uint64_t until = few ? measure_to_ns : enough_ns;
        if (now >= until) break;
        if (poll(fds, (nfds_t)count, (int)((until - now) / 1000000u) + 1) < 0) break;
        for (int i = 0; i < count; i++) {
            if (fds[i].revents & POLLOUT) send_request(i);
            if (fds[i].revents & (POLLIN | POLLHUP | POLLERR)) readable(i);
        }
    }
    uint64_t end = now_ns();
    double seconds = end > measure_from_ns ? (double)(end - measure_from_ns) / 1e9 : 0;
    printf("{\"good\":%ld,\"bad\":%ld,\"seconds\":%.4f,\"events\":%ld,\"bytes\":%ld,"
           "\"connects\":%ld,\"first_bad\":\"%s\",", good, bad, seconds, events, bytes, connects,
           first_bad);
    print_times("latency_us", latency);
    printf(",");
    print_times("first_us", first);
    printf("}\n");
    return 0;
}
