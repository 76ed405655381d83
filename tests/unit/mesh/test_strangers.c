/* Who is kept out, and that nothing comes of it: strangers made of sockets and OpenSSL, by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mesh/world.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>

struct raw { /* a stranger */
    int fd;
    SSL_CTX *context;
    SSL *ssl;
    struct buf in;
    bool is_closed; /* the node has closed the connection */
};

static void turn(struct world *w)
{
    struct timespec pause = {.tv_nsec = 200000};
    uv_run(&w->loop, UV_RUN_NOWAIT);
    nanosleep(&pause, NULL);
}

static struct raw raw_connect(struct world *w, int index)
{
    struct raw r = {.fd = socket(AF_INET, SOCK_STREAM, 0)};
    struct sockaddr_in a;
    assert_int_equal(uv_ip4_addr("127.0.0.1", w->side[index].address.port, &a), 0);
    assert_int_equal(connect(r.fd, (struct sockaddr *)&a, sizeof(a)), 0);
    fcntl(r.fd, F_SETFL, O_NONBLOCK);
    buf_init(&r.in, 1 << 20);
    return r;
}

static void raw_done(struct raw *r)
{
    SSL_free(r->ssl);
    SSL_CTX_free(r->context);
    close(r->fd);
    buf_done(&r->in);
    ERR_clear_error();
}

static X509 *make_certificate(EVP_PKEY *pkey, EVP_PKEY *signer, const EVP_MD *digest)
{
    X509 *c = X509_new();
    ASN1_INTEGER_set(X509_get_serialNumber(c), 1);
    X509_gmtime_adj(X509_getm_notBefore(c), 0);
    X509_gmtime_adj(X509_getm_notAfter(c), 3600);
    X509_set_pubkey(c, pkey);
    assert_int_not_equal(X509_sign(c, signer, digest), 0);
    return c;
}

enum certificate { CERT_GOOD, CERT_NONE, CERT_ECDSA, CERT_BY_ANOTHER };

static SSL_CTX *make_context(enum certificate kind)
{
    SSL_CTX *x = SSL_CTX_new(TLS_client_method());
    EVP_PKEY *pkey = kind == CERT_ECDSA ? EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256")
                                        : EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    EVP_PKEY *another = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    X509 *c = make_certificate(pkey, kind == CERT_BY_ANOTHER ? another : pkey,
                               kind == CERT_ECDSA ? EVP_sha256() : NULL);
    if (kind != CERT_NONE) {
        assert_int_equal(SSL_CTX_use_certificate(x, c), 1);
        assert_int_equal(SSL_CTX_use_PrivateKey(x, pkey), 1);
    }
    X509_free(c);
    EVP_PKEY_free(pkey);
    EVP_PKEY_free(another);
    return x;
}

/* Returns whether the handshake went through on this side. */
static bool raw_shake_hands(struct world *w, struct raw *r, SSL_CTX *context)
{
    r->context = context;
    r->ssl = SSL_new(context);
    SSL_set_fd(r->ssl, r->fd);
    for (int i = 0; i < 20000; i++) {
        int rc = SSL_connect(r->ssl);
        if (rc == 1)
            return true;
        if (SSL_get_error(r->ssl, rc) != SSL_ERROR_WANT_READ)
            return false;
        turn(w);
    }
    fail_msg("no end of the handshake");
    return false;
}

static void raw_send(struct world *w, struct raw *r, struct buf *b)
{
    for (int i = 0; i < 20000; i++) {
        int rc = SSL_write(r->ssl, b->data, (int)b->len);
        if (rc == (int)b->len || SSL_get_error(r->ssl, rc) != SSL_ERROR_WANT_WRITE)
            break;
        turn(w);
    }
    buf_done(b);
}

#define RAW_SEND(w, r, encode, ...)                                                                \
    do {                                                                                           \
        struct buf raw_buf;                                                                        \
        buf_init(&raw_buf, 1 << 22);                                                               \
        encode(&raw_buf, ##__VA_ARGS__);                                                           \
        raw_send(w, r, &raw_buf);                                                                  \
    } while (0)

/* Takes what has come. */
static void raw_receive(struct raw *r)
{
    char bytes[4096];
    int n;
    if (r->ssl == NULL) {
        while ((n = (int)recv(r->fd, bytes, sizeof(bytes), 0)) > 0)
            ;
        r->is_closed = r->is_closed || n == 0 || (n < 0 && errno == ECONNRESET);
        return;
    }
    ERR_clear_error();
    while ((n = SSL_read(r->ssl, bytes, sizeof(bytes))) > 0)
        buf_append(&r->in, bytes, (size_t)n);
    r->is_closed = r->is_closed || SSL_get_error(r->ssl, n) != SSL_ERROR_WANT_READ;
}

static void raw_wait_closed(struct world *w, struct raw *r)
{
    for (int i = 0; i < 40000 && !r->is_closed; i++) {
        turn(w);
        raw_receive(r);
    }
    assert_true(r->is_closed);
}

/* Waits for a message of this type and takes it and those before it. */
static void raw_expect(struct world *w, struct raw *r, enum mesh_type type,
                       struct mesh_message *ret)
{
    static char kept[8192];
    struct error err = {0};
    for (int i = 0; i < 20000; i++) {
        int64_t n = mesh_message_next(r->in.data, r->in.len, 4096, ret, &err);
        if (n > 0) {
            memcpy(kept, ret->payload, ret->len);
            ret->payload = (const uint8_t *)kept;
            buf_consume(&r->in, (size_t)n);
            if (ret->type == type)
                return;
            continue;
        }
        assert_true(n == 0 && !r->is_closed);
        turn(w);
        raw_receive(r);
    }
    fail_msg("no message of type %d", type);
}

/* A stranger with a good certificate that has got as far as a greeting. */
static struct raw raw_greet(struct world *w, int index, struct mesh_greeting greeting)
{
    struct raw r = raw_connect(w, index);
    struct mesh_message m;
    assert_true(raw_shake_hands(w, &r, make_context(CERT_GOOD)));
    RAW_SEND(w, &r, mesh_encode_greeting, &greeting);
    raw_expect(w, &r, MESH_GREETING, &m);
    return r;
}

static const struct mesh_greeting newcomer = {.version = 2, .version_min = 2, .is_newcomer = true};
static const struct mesh_greeting claimant = {
    .version = 2, .version_min = 2, .is_trusting = true, .has_secret = true};

/* A node that belongs to a cluster, and what must hold for it at the end. */
static void open_member(struct world *w)
{
    trust_each_other(w, 0, 1);
    open_side(w, 0, (struct side_options){0});
}

static void assert_untouched(struct world *w, enum mesh_refusal kind, uint64_t n)
{
    for (int i = 0; i < 4000 && n_refused(w, 0, kind) < n; i++)
        turn(w);
    assert_int_equal(n_refused(w, 0, kind), n);
    struct mesh_stats stats;
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_refused, n);
    assert_int_equal(w->side[0].n_up + w->side[0].n_messages + w->side[0].n_requests, 0);
    /* and members still come in */
    if (w->side[1].mesh == NULL)
        open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
}

/* ---- below TLS ---- */

static void test_garbage(void **state)
{
    struct world *w = *state;
    static const char *const texts[] = {"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff\x01",
                                        "SSH-2.0-OpenSSH_9.2\r\n"};
    open_member(w);
    for (size_t i = 0; i < 3; i++) {
        struct raw r = raw_connect(w, 0);
        assert_true(send(r.fd, texts[i], strlen(texts[i]), 0) > 0);
        raw_wait_closed(w, &r);
        raw_done(&r);
    }
    assert_untouched(w, MESH_REFUSED_GARBAGE, 3);
}

/* Many of a kind are one line in the log. */
static void test_logged_once(void **state)
{
    struct world *w = *state;
    char path[] = "/tmp/shoal-mesh-log-XXXXXX", text[8192];
    int log = mkstemp(path), saved = dup(2);
    open_member(w);
    dup2(log, 2);
    for (size_t i = 0; i < 5; i++) {
        struct raw r = raw_connect(w, 0);
        assert_true(send(r.fd, "hello hello", 11, 0) > 0);
        raw_wait_closed(w, &r);
        raw_done(&r);
    }
    dup2(saved, 2);
    ssize_t n = pread(log, text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    const char *first = strstr(text, "kind=garbage");
    assert_non_null(first);
    assert_null(strstr(first + 1, "kind=garbage"));
    close(log);
    close(saved);
    unlink(path);
    assert_untouched(w, MESH_REFUSED_GARBAGE, 5);
}

static void test_old_tls(void **state)
{
    struct world *w = *state;
    open_member(w);
    SSL_CTX *x = make_context(CERT_GOOD);
    SSL_CTX_set_max_proto_version(x, TLS1_2_VERSION);
    struct raw r = raw_connect(w, 0);
    assert_false(raw_shake_hands(w, &r, x));
    raw_done(&r);
    assert_untouched(w, MESH_REFUSED_OLD_TLS, 1);
}

static void test_certificates(void **state)
{
    struct world *w = *state;
    open_member(w);
    for (int kind = CERT_NONE; kind <= CERT_BY_ANOTHER; kind++) {
        struct raw r = raw_connect(w, 0);
        raw_shake_hands(w, &r, make_context((enum certificate)kind));
        RAW_SEND(w, &r, mesh_encode_greeting, &claimant);
        raw_wait_closed(w, &r);
        assert_int_equal(r.in.len, 0); /* not even a greeting */
        raw_done(&r);
    }
    assert_untouched(w, MESH_REFUSED_CERTIFICATE, 3);
}

/* One that says nothing, one that stops in the handshake, one that stops after it. */
static void test_slow(void **state)
{
    struct world *w = *state;
    open_member(w);
    struct raw silent = raw_connect(w, 0), half = raw_connect(w, 0), mute = raw_connect(w, 0);
    assert_true(send(half.fd, "\x16\x03\x01\x02\x00\x01", 6, 0) == 6);
    assert_true(raw_shake_hands(w, &mute, make_context(CERT_GOOD)));
    raw_wait_closed(w, &silent);
    raw_wait_closed(w, &half);
    raw_wait_closed(w, &mute);
    raw_done(&silent);
    raw_done(&half);
    raw_done(&mute);
    assert_untouched(w, MESH_REFUSED_SLOW, 3);
}

static void test_crowd(void **state)
{
    struct world *w = *state;
    enum { N = 40, N_KEPT = 32 };
    struct raw r[N];
    open_member(w);
    for (int i = 0; i < N; i++) {
        r[i] = raw_connect(w, 0);
        turn(w);
    }
    for (int i = N_KEPT; i < N; i++)
        raw_wait_closed(w, &r[i]);
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_CROWD), N - N_KEPT);
    for (int i = 0; i < N; i++)
        raw_done(&r[i]);
    run_ms(w, 100);
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
}

/* ---- above TLS ---- */

static void test_frames_that_are_none(void **state)
{
    struct world *w = *state;
    open_member(w);
    for (int i = 0; i < 4; i++) {
        struct raw r = raw_connect(w, 0);
        struct buf b;
        buf_init(&b, 100);
        assert_true(raw_shake_hands(w, &r, make_context(CERT_GOOD)));
        if (i == 0)
            buf_append_str(&b, "hello hello hello");
        else if (i == 1)
            mesh_encode_cluster(&b, "x", 1); /* of a member, from a stranger */
        else if (i == 2)
            mesh_encode_join_accept(&b);
        else
            mesh_encode_ping(&b, 1);
        raw_send(w, &r, &b);
        raw_wait_closed(w, &r);
        raw_done(&r);
    }
    assert_untouched(w, MESH_REFUSED_GARBAGE, 4);
}

/* Refused from the header alone. */
static void test_oversize(void **state)
{
    struct world *w = *state;
    open_member(w);
    struct raw r = raw_connect(w, 0);
    struct buf b;
    buf_init(&b, 100);
    assert_true(raw_shake_hands(w, &r, make_context(CERT_GOOD)));
    buf_append_u32(&b, MESH_STRANGER_BYTES_MAX + 1);
    buf_append_u16(&b, MESH_GREETING);
    buf_append_u16(&b, 0);
    raw_send(w, &r, &b);
    raw_wait_closed(w, &r);
    raw_done(&r);
    assert_untouched(w, MESH_REFUSED_OVERSIZE, 1);
}

static void test_versions(void **state)
{
    struct world *w = *state;
    static const struct mesh_greeting greetings[] = {
        {.version = 1, .version_min = 1, .is_newcomer = true},
        {.version = 9, .version_min = MESH_PROTOCOL_VERSION + 1, .is_newcomer = true},
    };
    open_member(w);
    for (size_t i = 0; i < 2; i++) {
        struct raw r = raw_greet(w, 0, greetings[i]);
        struct mesh_message m;
        raw_expect(w, &r, MESH_REFUSED, &m);
        assert_int_equal(m.payload[0], MESH_REFUSED_VERSION);
        raw_wait_closed(w, &r);
        raw_done(&r);
    }
    assert_untouched(w, MESH_REFUSED_VERSION, 2);

    /* A later one that still speaks ours is met in our version. */
    struct raw r = raw_greet(
        w, 0, (struct mesh_greeting){.version = 9, .version_min = 2, .is_newcomer = true});
    struct mesh_message m;
    raw_expect(w, &r, MESH_JOIN_COMMIT, &m);
    raw_done(&r);
}

/* It says that it trusts us: that makes it no member. */
static void test_uninvited(void **state)
{
    struct world *w = *state;
    open_member(w);
    struct raw r = raw_greet(w, 0, claimant);
    struct mesh_hello hello = {.name = "evil"};
    RAW_SEND(w, &r, mesh_encode_hello, &hello);
    raw_wait_closed(w, &r);
    raw_done(&r);
    assert_untouched(w, MESH_REFUSED_UNINVITED, 1);
}

/* Who is dialled proves nothing before the other has: a guess at the secret yields no answer. */
static void test_wrong_secret(void **state)
{
    struct world *w = *state;
    open_side(w, 0, (struct side_options){.secret = "correct horse battery"});
    struct raw r = raw_greet(w, 0, claimant);
    struct mesh_proof proof = {.mac = {1}};
    struct mesh_message m;
    turn(w);
    raw_receive(&r);
    assert_int_equal(r.in.len, 0);
    RAW_SEND(w, &r, mesh_encode_proof, &proof);
    raw_expect(w, &r, MESH_REFUSED, &m);
    assert_int_equal(m.payload[0], MESH_REFUSED_WRONG_SECRET);
    raw_wait_closed(w, &r);
    raw_done(&r);
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_WRONG_SECRET), 1);

    open_side(w, 1, (struct side_options){.secret = "correct horse buttery", .peer = 1});
    RUN_UNTIL(w, n_refused(w, 0, MESH_REFUSED_WRONG_SECRET) == 2);
    assert_int_equal(w->side[0].n_up + w->side[1].n_up, 0);

    /* One without a secret may only ask. */
    open_side(w, 2, (struct side_options){.peer = 1, .is_adoptable = true});
    RUN_UNTIL(w, w->side[0].n_requests == 1);
    run_ms(w, 300);
    assert_int_equal(w->side[2].n_up, 0);
}

/* A member's word is not believed blindly either. */
static void test_member_that_lies(void **state)
{
    struct world *w = *state;
    static const struct mesh_greeting member = {
        .version = 2, .version_min = 2, .is_trusting = true};
    struct mesh_stats stats;
    struct mesh_message m;
    struct error err = {0};
    open_member(w);
    for (int i = 0; i < 3; i++) {
        SSL_CTX *x = SSL_CTX_new(TLS_client_method());
        SSL_CTX_use_certificate(x, w->side[1].identity->certificate);
        SSL_CTX_use_PrivateKey(x, w->side[1].identity->pkey);
        struct raw r = raw_connect(w, 0);
        assert_true(raw_shake_hands(w, &r, x));
        RAW_SEND(w, &r, mesh_encode_greeting, &member);
        /* This would break the file of trusted keys. */
        struct mesh_hello hello = {.name = "side 1", .mesh = {.host = "a b", .port = 1}};
        RAW_SEND(w, &r, mesh_encode_hello, &hello);
        raw_expect(w, &r, MESH_TRUST, &m);
        assert_non_null(w->side[0].link);
        struct mesh_trust_entry entry = {.key = {1}, .id = {{2}}, .name = "x"};
        struct mesh_trust trust = {.n_entries = 1, .entries = &entry};
        if (i == 0)
            RAW_SEND(w, &r, mesh_encode_trust, &trust);
        else if (i == 1)
            RAW_SEND(w, &r, mesh_encode_greeting, &member);
        else
            RAW_SEND(w, &r, mesh_encode_cluster, "xy", 2);
        if (i < 2)
            raw_wait_closed(w, &r);
        else
            RUN_UNTIL(w, w->side[0].n_messages == 1);
        raw_done(&r);
        RUN_UNTIL(w, w->side[0].n_down == i + 1);
        assert_true(w->side[0].is_closed == (i == 2));
    }
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_malformed, 2);
    assert_int_equal(stats.n_refused, 0);
    RUN_UNTIL(w, strstr(trusted_text(w, 0), " - side 1\n") != NULL);
    close_side(w, 0);
    assert_int_equal(try_open(w, 0, (struct side_options){0}, &err), 0);
}

/* Nothing comes any more, and nothing says why: the link is lost after 10 s, and not as closed. */
static void test_silent_member(void **state)
{
    struct world *w = *state;
    static const struct mesh_greeting member = {
        .version = 2, .version_min = 2, .is_trusting = true};
    struct mesh_message m;
    open_member(w);
    SSL_CTX *x = SSL_CTX_new(TLS_client_method());
    SSL_CTX_use_certificate(x, w->side[1].identity->certificate);
    SSL_CTX_use_PrivateKey(x, w->side[1].identity->pkey);
    struct raw r = raw_connect(w, 0);
    struct mesh_hello hello = {.name = "side-1"};
    assert_true(raw_shake_hands(w, &r, x));
    RAW_SEND(w, &r, mesh_encode_greeting, &member);
    RAW_SEND(w, &r, mesh_encode_hello, &hello);
    raw_expect(w, &r, MESH_PING, &m);
    RUN_UNTIL(w, mesh_link_silent_ms(w->side[0].link) > 5000);
    assert_int_equal(w->side[0].n_down, 0);
    RUN_UNTIL(w, w->side[0].n_down == 1);
    assert_non_null(strstr(w->side[0].reason, "silent"));
    assert_false(w->side[0].is_closed);
    raw_done(&r);
}

/* ---- requests to join ---- */

static void commit_to(struct mesh_join_commit *c, const uint8_t own[32], const uint8_t other[32],
                      const uint8_t nonce[32])
{
    uint8_t text[128] = "shoal join commit";
    memcpy(text + 32, own, 32);
    memcpy(text + 64, other, 32);
    memcpy(text + 96, nonce, 32);
    SHA256(text, sizeof(text), c->commit);
    snprintf(c->name, sizeof(c->name), "evil");
}

static void raw_key(const struct raw *r, uint8_t key[32])
{
    size_t len = 32;
    EVP_PKEY_get_raw_public_key(X509_get0_pubkey(SSL_get_certificate(r->ssl)), key, &len);
}

/* A newcomer that has shown its nonce. */
static struct raw raw_ask(struct world *w, int index, bool is_cheating)
{
    struct raw r = raw_greet(w, index, newcomer);
    struct mesh_join_commit commit = {0};
    struct mesh_join_reveal reveal = {.nonce = {42}};
    struct mesh_message m;
    uint8_t key[32];
    raw_key(&r, key);
    commit_to(&commit, key, w->side[index].identity->key, reveal.nonce);
    RAW_SEND(w, &r, mesh_encode_join_commit, &commit);
    raw_expect(w, &r, MESH_JOIN_COMMIT, &m);
    raw_expect(w, &r, MESH_JOIN_REVEAL, &m);
    reveal.nonce[1] = is_cheating;
    RAW_SEND(w, &r, mesh_encode_join_reveal, &reveal);
    return r;
}

/* A nonce chosen after the other side's was seen. */
static void test_other_nonce(void **state)
{
    struct world *w = *state;
    open_member(w);
    struct raw r = raw_ask(w, 0, true);
    raw_wait_closed(w, &r);
    raw_done(&r);
    assert_untouched(w, MESH_REFUSED_GARBAGE, 1);
}

/* One that looks at our nonce, computes the code, and comes again if it is not the one it wants. */
static void test_broken_off(void **state)
{
    struct world *w = *state;
    open_member(w);
    for (int i = 0; i < 11; i++) {
        struct raw r = raw_greet(w, 0, newcomer);
        struct mesh_join_commit commit = {.name = "evil"};
        struct mesh_message m;
        if (i == 10) {
            raw_expect(w, &r, MESH_REFUSED, &m);
            assert_int_equal(m.payload[0], MESH_REFUSED_BUSY);
        } else {
            RAW_SEND(w, &r, mesh_encode_join_commit, &commit);
            raw_expect(w, &r, MESH_JOIN_REVEAL, &m);
        }
        raw_done(&r);
        run_ms(w, 10);
    }
    assert_untouched(w, MESH_REFUSED_BUSY, 1);
}

/* Its own approval and its own acceptance make nobody a member. */
static void test_approves_itself(void **state)
{
    struct world *w = *state;
    struct node_id id;
    uint8_t key[32];
    open_member(w);
    struct raw r = raw_ask(w, 0, false);
    struct mesh_hello hello = {.name = "evil"};
    raw_key(&r, key);
    identity_id_of_key(key, &id);
    RAW_SEND(w, &r, mesh_encode_join_approve);
    RAW_SEND(w, &r, mesh_encode_join_accept);
    run_ms(w, 300);
    assert_int_equal(w->side[0].n_requests, 1);
    assert_false(mesh_is_trusted(w->side[0].mesh, &id));
    RAW_SEND(w, &r, mesh_encode_hello, &hello);
    raw_wait_closed(w, &r);
    raw_done(&r);
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_GARBAGE), 1);
    assert_int_equal(w->side[0].n_up, 0);
    assert_false(mesh_is_trusted(w->side[0].mesh, &id));
}

/* One address cannot take all places, and 16 is all there are. */
static void test_many_requests(void **state)
{
    struct world *w = *state;
    struct mesh_join_request request;
    struct raw r[6];
    open_member(w);
    for (int i = 0; i < 6; i++) {
        r[i] = raw_ask(w, 0, false);
        for (int k = 0; k < 2000 && w->side[0].n_requests <= i; k++)
            turn(w);
    }
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_BUSY), 2);
    raw_wait_closed(w, &r[0]);
    raw_wait_closed(w, &r[1]);
    assert_true(mesh_request_at(w->side[0].mesh, 3, &request));
    assert_false(mesh_request_at(w->side[0].mesh, 4, &request));
    for (int i = 0; i < 6; i++)
        raw_done(&r[i]);
    run_ms(w, 100);
    assert_false(mesh_request_at(w->side[0].mesh, 0, &request));
    /* and after 32 there is a pause */
    for (int i = 0; i < 27; i++) {
        struct raw one = raw_greet(w, 0, newcomer);
        struct mesh_message m;
        raw_expect(w, &one, i < 26 ? MESH_JOIN_COMMIT : MESH_REFUSED, &m);
        raw_done(&one);
    }
}

/* Who asks and never reads is not kept for long. */
static void test_reads_nothing(void **state)
{
    struct world *w = *state;
    open_member(w);
    struct raw r = raw_ask(w, 0, false);
    struct mesh_stats stats;
    int pings = 0;
    while (pings < 2000000) {
        struct buf b;
        size_t n = 0;
        buf_init(&b, 1 << 20);
        for (int i = 0; i < 900; i++)
            mesh_encode_ping(&b, 7);
        int rc = SSL_write_ex(r.ssl, b.data, b.len, &n);
        buf_done(&b);
        uv_run(&w->loop, UV_RUN_NOWAIT);
        if (rc != 1 && SSL_get_error(r.ssl, rc) != SSL_ERROR_WANT_WRITE)
            break;
        pings += 900;
    }
    assert_true(pings < 2000000);
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_lost, 0);
    raw_done(&r);
}

/* Side 1's identity by hand; as far as the greeting. */
static struct raw raw_member(struct world *w, struct mesh_greeting greeting)
{
    SSL_CTX *x = SSL_CTX_new(TLS_client_method());
    SSL_CTX_use_certificate(x, w->side[1].identity->certificate);
    SSL_CTX_use_PrivateKey(x, w->side[1].identity->pkey);
    struct raw r = raw_connect(w, 0);
    assert_true(raw_shake_hands(w, &r, x));
    RAW_SEND(w, &r, mesh_encode_greeting, &greeting);
    return r;
}

/* To say that one only measures opens no door. */
static void test_probes_of_strangers(void **state)
{
    struct world *w = *state;
    struct mesh_message m;
    open_member(w);
    for (int i = 0; i < 3; i++) {
        struct mesh_greeting greeting = {
            .version = 3, .version_min = 2, .is_probe = true, .is_trusting = i > 0};
        greeting.has_secret = i == 2;
        struct raw r = raw_greet(w, 0, greeting);
        RAW_SEND(w, &r, mesh_encode_ping, 1);
        raw_expect(w, &r, MESH_REFUSED, &m);
        assert_int_equal(m.payload[0], MESH_REFUSED_UNINVITED);
        raw_wait_closed(w, &r);
        raw_done(&r);
    }
    assert_untouched(w, MESH_REFUSED_UNINVITED, 3);
}

/* A member's probe measures, says nothing else, and is no link. */
static void test_probes_of_members(void **state)
{
    struct world *w = *state;
    static const struct mesh_greeting probe = {
        .version = 3, .version_min = 2, .is_trusting = true, .is_probe = true};
    struct mesh_stats stats;
    struct mesh_message m;
    open_member(w);
    for (int i = 0; i < 6; i++) {
        struct raw r = raw_member(w, probe);
        RAW_SEND(w, &r, mesh_encode_ping, 77);
        raw_expect(w, &r, MESH_PONG, &m);
        if (i == 0) {
            RAW_SEND(w, &r, mesh_encode_cluster, "xy", 2);
        } else if (i == 1) {
            struct mesh_hello hello = {.name = "side 1"};
            RAW_SEND(w, &r, mesh_encode_hello, &hello);
        } else if (i == 2) {
            RAW_SEND(w, &r, mesh_encode_bulk_ask, UINT32_MAX);
        } else if (i == 3) { /* more than a frame of BULK, from the header alone */
            struct buf b;
            buf_init(&b, 8);
            buf_append_u32(&b, 1 << 20);
            buf_append_u16(&b, MESH_BULK);
            buf_append_u16(&b, 0);
            raw_send(w, &r, &b);
        } else if (i == 4) {
            RAW_SEND(w, &r, mesh_encode_bulk_ask, 65536);
            for (int k = 0; k < 20000 && r.in.len < 65536; k++) {
                turn(w);
                raw_receive(&r);
            }
            assert_in_range(r.in.len, 65536, 70000);
        } else {
            struct raw second = raw_member(w, probe); /* the one before makes room */
            raw_wait_closed(w, &r);
            raw_done(&second);
        }
        if (i < 4)
            raw_wait_closed(w, &r);
        raw_done(&r);
        mesh_get_stats(w->side[0].mesh, &stats);
        assert_int_equal(stats.n_malformed, i < 4 ? i + 1 : 4);
    }
    assert_int_equal(w->side[0].n_up, 0);
    assert_untouched(w, MESH_REFUSED_GARBAGE, 0);
}

/* What a member says of addresses and paths is checked like the rest. */
static void test_member_with_bad_addresses(void **state)
{
    struct world *w = *state;
    static const struct mesh_greeting member = {
        .version = 3, .version_min = 2, .is_trusting = true};
    struct mesh_stats stats;
    struct mesh_message m;
    open_member(w);
    for (int i = 0; i < 4; i++) {
        struct raw r = raw_member(w, member);
        struct mesh_hello hello = {.name = "side 1", .mesh = {.host = "127.0.0.1", .port = 1}};
        struct mesh_addresses a = {.n = 1, .at = {{.host = "192.0.2.1", .name = "eth0"}}};
        static struct mesh_paths p;
        p = (struct mesh_paths){.best = 0, .n = 1, .path = {{.local = "::1", .remote = "::1"}}};
        RAW_SEND(w, &r, mesh_encode_hello, &hello);
        raw_expect(w, &r, MESH_ADDRESSES, &m);
        RUN_UNTIL(w, w->side[0].link != NULL);
        if (i == 0)
            snprintf(a.at[0].host, sizeof(a.at[0].host), "fe80::1%%eth0; rm");
        else if (i == 1)
            p.best = 2;
        else if (i == 2)
            p.path[0].mbit_s = -1;
        else
            p.path[0].status = 7;
        if (i == 0)
            RAW_SEND(w, &r, mesh_encode_addresses, &a);
        else
            RAW_SEND(w, &r, mesh_encode_paths, &p);
        raw_wait_closed(w, &r);
        raw_done(&r);
        RUN_UNTIL(w, w->side[0].n_down == i + 1);
    }
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_malformed, 4);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_garbage),
        TEST(test_logged_once),
        TEST(test_old_tls),
        TEST(test_certificates),
        TEST(test_slow),
        TEST(test_crowd),
        TEST(test_frames_that_are_none),
        TEST(test_oversize),
        TEST(test_versions),
        TEST(test_uninvited),
        TEST(test_wrong_secret),
        TEST(test_member_that_lies),
        TEST(test_silent_member),
        TEST(test_other_nonce),
        TEST(test_broken_off),
        TEST(test_approves_itself),
        TEST(test_many_requests),
        TEST(test_reads_nothing),
        TEST(test_probes_of_strangers),
        TEST(test_probes_of_members),
        TEST(test_member_with_bad_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
