/* Between tcp_handshake.c (one connection) and tcp_gather.c (all of them). */
#ifndef SHOAL_COMM_TCP_ATTEMPT_H
#define SHOAL_COMM_TCP_ATTEMPT_H

#include "comm/tcp.h"
#include "comm/wire.h"

enum stage {
    UNUSED,
    RETRY,        /* connector: a pause before the next attempt */
    CONNECTING,   /* connector: TCP is not through yet */
    WANT_ANSWER,  /* connector: hello and proof */
    WANT_VERDICT, /* connector */
    WANT_HELLO,   /* acceptor */
    WANT_PROOF,   /* acceptor */
};

struct attempt {
    enum stage stage;
    int fd;
    uint32_t rank;        /* connector: whom we want */
    uint64_t deadline_ns; /* of this stage; RETRY: when to try again */
    uint64_t since_ns;
    struct sockaddr_storage address;
    uint8_t our_hello[HELLO_BYTES], their_hello[HELLO_BYTES];
    uint8_t in[HELLO_BYTES + PROOF_BYTES];
    uint8_t out[HELLO_BYTES + PROOF_BYTES + VERDICT_BYTES]; /* all that one side ever says */
    size_t n_in, n_in_want, n_out, n_out_sent;
    struct error last; /* connector: why the last attempt failed */
};

struct shake {
    struct comm_tcp_listener *listener;
    const struct tcp_identity *me;
    int *fds;
    uint32_t n_connected;
    uint64_t deadline_ns;
    uint64_t accept_again_ns; /* out of descriptors: not before */
    uint64_t n_refused;
    struct attempt out[LIMIT_RANKS], in[LIMIT_HANDSHAKES];
};

/* Closes the connection, if there is one, and frees the place. */
void attempt_end(struct attempt *a);
/* Turns an accepted connection away: counted, and the first one logged. */
void attempt_refuse(struct shake *s, struct attempt *a, const char *why);
/* A connection of ours that came to nothing: again later, until the deadline of all. */
void attempt_retry(struct attempt *a, const char *why);
/* What to read next. */
void attempt_want(struct attempt *a, enum stage stage, size_t n);
/* TCP is through, or has failed: says hello. Errors: what waiting will not mend. */
int attempt_connected(struct shake *s, struct attempt *a, struct error *err);
/* Reads what is there and answers. Errors: E_PROTOCOL for a true rank with another program or
 * place, E_INTERNAL. */
int attempt_read(struct shake *s, struct attempt *a, struct error *err);

#endif
