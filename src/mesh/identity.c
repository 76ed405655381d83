/* The node's key pair, on disk, and the certificate that carries the public half to the others. */
#include "mesh/identity.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PEM_BYTES_MAX = 4096 };

void identity_id_of_key(const uint8_t key[32], struct node_id *ret_id)
{
    uint8_t digest[32];
    SHA256(key, 32, digest);
    memcpy(ret_id->bytes, digest, sizeof(ret_id->bytes));
}

static int write_all(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(fd, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        data += n;
        len -= (size_t)n;
    }
    return fsync(fd) != 0 ? -errno : 0;
}

/* The new name itself must outlive a loss of power, too. */
static void sync_folder_of(const char *path)
{
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash == NULL)
        return;
    *slash = '\0';
    int fd = open(folder[0] != '\0' ? folder : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

int file_write_atomically(const char *path, const void *data, size_t len, bool is_new,
                          struct error *err)
{
    char temporary[4096];
    int n = snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);
    if (n < 0 || (size_t)n >= sizeof(temporary))
        return error_set(err, E_INVALID, "the path %.100s... is too long", path);
    int fd = mkostemp(temporary, O_CLOEXEC); /* mode 0600 */
    if (fd < 0)
        return error_set(err, -errno, "cannot make %s: %s", temporary, strerror(errno));
    int rc = write_all(fd, data, len);
    close(fd);
    if (rc == 0 && (is_new ? link(temporary, path) : rename(temporary, path)) != 0)
        rc = -errno;
    if (rc != 0 || is_new)
        unlink(temporary);
    if (rc != 0)
        return error_set(err, rc, "cannot write %s: %s", path, strerror(-rc));
    sync_folder_of(path);
    return 0;
}

static int make_file(const char *path, struct error *err)
{
    int rc = error_set(err, E_NOMEM, "cannot make a key for %s: out of memory", path);
    char *pem = NULL;
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    BIO *bio = BIO_new(BIO_s_mem());
    if (pkey != NULL && bio != NULL &&
        PEM_write_bio_PKCS8PrivateKey(bio, pkey, NULL, NULL, 0, NULL, NULL) == 1) {
        long len = BIO_get_mem_data(bio, &pem);
        rc = file_write_atomically(path, pem, (size_t)len, true, err);
        OPENSSL_cleanse(pem, (size_t)len);
        if (rc == UV_EEXIST) { /* another process was faster: its key counts */
            error_clear(err);
            rc = 0;
        }
    }
    EVP_PKEY_free(pkey);
    BIO_free(bio);
    return rc;
}

static int check_file(int fd, const char *path, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return error_set(err, E_IO, "cannot look at %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(err, E_IO, "%s is not a file", path);
    if ((st.st_mode & 077) != 0)
        return error_set(err, E_IO,
                         "%s, this node's private key, can be read or changed by others (mode "
                         "%03o). Say: chmod 600 %s; if others may have read it, remove it, and the "
                         "node gets a new identity",
                         path, st.st_mode & 0777u, path);
    if (st.st_size > PEM_BYTES_MAX)
        return error_set(err, E_FORMAT, "%s has %lld bytes, too many for a key", path,
                         (long long)st.st_size);
    return 0;
}

/* No passphrase is asked for: this is a daemon. */
static int no_passphrase(char *text, int size, int is_writing, void *arg)
{
    (void)text, (void)size, (void)is_writing, (void)arg;
    return -1;
}

static int read_file(const char *path, EVP_PKEY **ret_pkey, struct error *err)
{
    char pem[PEM_BYTES_MAX + 1];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set(err, errno == ENOENT ? E_NOTFOUND : E_IO, "cannot open %s: %s", path,
                         strerror(errno));
    int rc = check_file(fd, path, err);
    ssize_t n = rc == 0 ? read(fd, pem, sizeof(pem)) : 0;
    close(fd);
    if (rc != 0)
        return rc;
    if (n < 0)
        return error_set(err, E_IO, "cannot read %s: %s", path, strerror(errno));
    BIO *bio = BIO_new_mem_buf(pem, (int)n);
    EVP_PKEY *pkey = bio != NULL ? PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL) : NULL;
    BIO_free(bio);
    OPENSSL_cleanse(pem, sizeof(pem));
    if (pkey == NULL || !EVP_PKEY_is_a(pkey, "ED25519")) {
        EVP_PKEY_free(pkey);
        return error_set(err, E_FORMAT,
                         "%s does not hold an Ed25519 private key in PEM form: restore it from a "
                         "copy, or remove it, and the node gets a new identity and must join again",
                         path);
    }
    *ret_pkey = pkey;
    return 0;
}

/* Dates are as wide as they can be: nobody looks at them, since home computers' clocks are wrong
 * and keys are pinned, not certified. */
static X509 *make_certificate(EVP_PKEY *pkey)
{
    X509 *c = X509_new();
    X509_NAME *name = c != NULL ? X509_get_subject_name(c) : NULL;
    if (name == NULL || X509_set_version(c, 2) != 1 ||
        ASN1_INTEGER_set(X509_get_serialNumber(c), 1) != 1 ||
        ASN1_TIME_set_string_X509(X509_getm_notBefore(c), "20000101000000Z") != 1 ||
        ASN1_TIME_set_string_X509(X509_getm_notAfter(c), "99991231235959Z") != 1 ||
        X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"shoal", -1, -1,
                                   0) != 1 ||
        X509_set_issuer_name(c, name) != 1 || X509_set_pubkey(c, pkey) != 1 ||
        X509_sign(c, pkey, NULL) == 0) {
        X509_free(c);
        return NULL;
    }
    return c;
}

int mesh_identity_load(const char *data_dir, struct mesh_identity **ret, struct error *err)
{
    char path[4096];
    int n = snprintf(path, sizeof(path), "%s/identity.pem", data_dir);
    if (n < 0 || (size_t)n >= sizeof(path) - 8)
        return error_set(err, E_INVALID, "data folder's path is too long");
    struct mesh_identity *i = calloc(1, sizeof(*i));
    size_t len = sizeof(i->key);
    if (i == NULL)
        return error_set(err, E_NOMEM, "out of memory for the node's identity");
    int rc = read_file(path, &i->pkey, err);
    if (rc == E_NOTFOUND) {
        error_clear(err);
        rc = make_file(path, err);
        if (rc == 0)
            rc = read_file(path, &i->pkey, err);
        else if (rc != E_NOMEM && rc != E_INVALID)
            rc = error_wrap(err, E_IO, "this node's identity");
    }
    if (rc == 0) {
        i->certificate = make_certificate(i->pkey);
        if (i->certificate == NULL || EVP_PKEY_get_raw_public_key(i->pkey, i->key, &len) != 1)
            rc = error_set(err, E_NOMEM, "out of memory for the node's certificate");
    }
    if (rc != 0) {
        mesh_identity_free(i);
        return rc;
    }
    identity_id_of_key(i->key, &i->id);
    *ret = i;
    return 0;
}

void mesh_identity_free(struct mesh_identity *i)
{
    if (i == NULL)
        return;
    X509_free(i->certificate);
    EVP_PKEY_free(i->pkey);
    free(i);
}

const struct node_id *mesh_identity_id(const struct mesh_identity *i)
{
    return &i->id;
}
