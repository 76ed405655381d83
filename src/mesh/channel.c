#include "mesh/channel.h"

#include <openssl/err.h>
#include <openssl/x509.h>
#include <string.h>

enum { CERTIFICATE_BYTES_MAX = 4096, OUT_BYTES_MAX = 16 << 20 };

static BIO_METHOD *bio_method;
static uv_once_t bio_once = UV_ONCE_INIT;

/* ---- a BIO on the channel's own fields ---- */

static int on_bio_read(BIO *bio, char *data, size_t size, size_t *ret_n)
{
    struct channel *c = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    *ret_n = 0;
    if (c->in_len == 0) {
        BIO_set_retry_read(bio);
        return 0;
    }
    size_t n = size < c->in_len ? size : c->in_len;
    memcpy(data, c->in, n);
    c->in += n;
    c->in_len -= n;
    *ret_n = n;
    return 1;
}

static int on_bio_write(BIO *bio, const char *data, size_t len, size_t *ret_n)
{
    struct channel *c = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    *ret_n = 0;
    if (buf_append(&c->out, data, len) != 0)
        return 0;
    *ret_n = len;
    return 1;
}

static long on_bio_ctrl(BIO *bio, int command, long number, void *arg)
{
    (void)bio, (void)number, (void)arg;
    return command == BIO_CTRL_FLUSH;
}

static int on_bio_create(BIO *bio)
{
    BIO_set_init(bio, 1);
    return 1;
}

static void make_bio_method(void)
{
    BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "mesh link");
    if (m == NULL)
        return;
    if (BIO_meth_set_read_ex(m, on_bio_read) == 1 && BIO_meth_set_write_ex(m, on_bio_write) == 1 &&
        BIO_meth_set_ctrl(m, on_bio_ctrl) == 1 && BIO_meth_set_create(m, on_bio_create) == 1)
        bio_method = m;
    else
        BIO_meth_free(m);
}

/* ---- who may connect ---- */

/* In the place of a chain check. The handshake itself proves that the peer holds the private key of
 * this certificate; here only its kind is looked at. */
static int on_verify(X509_STORE_CTX *store, void *arg)
{
    (void)arg;
    X509 *certificate = X509_STORE_CTX_get0_cert(store);
    STACK_OF(X509) *chain = X509_STORE_CTX_get0_untrusted(store);
    EVP_PKEY *pkey = certificate != NULL ? X509_get0_pubkey(certificate) : NULL;
    if (pkey != NULL && sk_X509_num(chain) <= 1 && EVP_PKEY_is_a(pkey, "ED25519") &&
        X509_self_signed(certificate, 1) == 1)
        return 1;
    X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_REJECTED);
    ERR_clear_error(); /* so that the first error is that of the handshake */
    return 0;
}

int channel_context_new(const struct mesh_identity *i, SSL_CTX **ret_context, struct error *err)
{
    SSL_CTX *x = SSL_CTX_new(TLS_method());
    uv_once(&bio_once, make_bio_method);
    if (x == NULL || bio_method == NULL || SSL_CTX_set_min_proto_version(x, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_max_proto_version(x, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_ciphersuites(x, "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256") != 1 ||
        SSL_CTX_set1_groups_list(x, "X25519") != 1 ||
        SSL_CTX_set1_sigalgs_list(x, "ed25519") != 1 ||
        SSL_CTX_use_certificate(x, i->certificate) != 1 ||
        SSL_CTX_use_PrivateKey(x, i->pkey) != 1) {
        SSL_CTX_free(x);
        ERR_clear_error();
        return error_set(err, E_NOMEM,
                         "cannot set up TLS 1.3: out of memory, or this machine's "
                         "OpenSSL settings forbid Ed25519");
    }
    SSL_CTX_set_verify(x, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_cert_verify_callback(x, on_verify, NULL);
    SSL_CTX_set_max_cert_list(x, CERTIFICATE_BYTES_MAX);
    /* No resumption: each connection proves both keys anew. */
    SSL_CTX_set_session_cache_mode(x, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(x, 0);
    SSL_CTX_set_options(x, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_PRIORITIZE_CHACHA |
                               SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(x, SSL_MODE_RELEASE_BUFFERS);
    *ret_context = x;
    return 0;
}

int channel_init(struct channel *c, SSL_CTX *context, bool is_client)
{
    *c = (struct channel){0};
    buf_init(&c->out, OUT_BYTES_MAX);
    BIO *bio = BIO_new(bio_method);
    c->ssl = bio != NULL ? SSL_new(context) : NULL;
    if (c->ssl == NULL) {
        BIO_free(bio);
        return E_NOMEM;
    }
    BIO_set_data(bio, c);
    SSL_set_bio(c->ssl, bio, bio);
    if (is_client)
        SSL_set_connect_state(c->ssl);
    else
        SSL_set_accept_state(c->ssl);
    return 0;
}

void channel_done(struct channel *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
    buf_done(&c->out);
}

static enum mesh_refusal refusal_of(unsigned long code)
{
    switch (ERR_GET_REASON(code)) {
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
    case SSL_R_VERSION_TOO_LOW:
        return MESH_REFUSED_OLD_TLS;
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_NO_SHARED_SIGNATURE_ALGORITHMS:
    case SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM:
    case SSL_R_WRONG_SIGNATURE_TYPE:
    case SSL_R_WRONG_CERTIFICATE_TYPE:
    case SSL_R_UNKNOWN_CERTIFICATE_TYPE:
    case SSL_R_BAD_SIGNATURE:
    case SSL_R_EXCESSIVE_MESSAGE_SIZE:
    case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
        return MESH_REFUSED_CERTIFICATE;
    default:
        return MESH_REFUSED_GARBAGE;
    }
}

static int set_tls_error(struct error *err, const char *what, unsigned long code)
{
    const char *reason = ERR_reason_error_string(code);
    return error_set(err, E_PROTOCOL, "%s: %s", what, reason != NULL ? reason : "unknown error");
}

int channel_handshake(struct channel *c, enum mesh_refusal *ret_refusal, struct error *err)
{
    ERR_clear_error();
    int rc = SSL_do_handshake(c->ssl);
    if (rc == 1)
        return 1;
    if (SSL_get_error(c->ssl, rc) == SSL_ERROR_WANT_READ)
        return 0;
    unsigned long code = ERR_peek_error();
    *ret_refusal = refusal_of(code);
    rc = set_tls_error(err, "TLS handshake", code);
    ERR_clear_error();
    return rc;
}

int64_t channel_read(struct channel *c, void *data, size_t size, struct error *err)
{
    size_t n = 0;
    ERR_clear_error();
    int rc = SSL_read_ex(c->ssl, data, size, &n);
    if (rc == 1)
        return (int64_t)n;
    switch (SSL_get_error(c->ssl, rc)) {
    case SSL_ERROR_WANT_READ:
        return 0;
    case SSL_ERROR_ZERO_RETURN:
        return CHANNEL_CLOSED;
    default:
        rc = set_tls_error(err, "TLS", ERR_peek_error());
        ERR_clear_error();
        return rc;
    }
}

int channel_write(struct channel *c, const void *data, size_t len)
{
    size_t n = 0;
    if (len == 0)
        return 0;
    ERR_clear_error();
    if (SSL_write_ex(c->ssl, data, len, &n) == 1 && n == len)
        return 0;
    ERR_clear_error();
    return c->out.error != 0 ? c->out.error : E_PROTOCOL;
}

void channel_shut_down(struct channel *c)
{
    ERR_clear_error();
    if (c->ssl != NULL && SSL_is_init_finished(c->ssl))
        SSL_shutdown(c->ssl);
    ERR_clear_error();
}

int channel_get_key(const struct channel *c, uint8_t ret_key[32])
{
    X509 *certificate = SSL_get0_peer_certificate(c->ssl);
    EVP_PKEY *pkey = certificate != NULL ? X509_get0_pubkey(certificate) : NULL;
    size_t len = 32;
    if (pkey == NULL || EVP_PKEY_get_raw_public_key(pkey, ret_key, &len) != 1 || len != 32) {
        ERR_clear_error();
        return E_PROTOCOL;
    }
    return 0;
}

int channel_export(const struct channel *c, uint8_t ret_bytes[32])
{
    static const char label[] = "EXPORTER-shoal-mesh-proof";
    int rc =
        SSL_export_keying_material(c->ssl, ret_bytes, 32, label, sizeof(label) - 1, NULL, 0, 0);
    ERR_clear_error();
    return rc == 1 ? 0 : E_NOMEM;
}
