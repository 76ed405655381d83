#include "store/files.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 + 32, BUFFER_BYTES = 1 << 20 };

int files_make_folder_of(const char *path, struct error *err)
{
    char folder[PATH_BYTES];
    int n = snprintf(folder, sizeof(folder), "%s", path);
    if (n < 0 || (size_t)n >= sizeof(folder))
        return error_set(err, E_IO, "the path %.100s... is too long", path);
    for (char *p = folder + 1; *p != '\0'; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(folder, 0755) != 0 && errno != EEXIST)
            return error_set(err, E_IO, "cannot make the folder %s: %s", folder, strerror(errno));
        *p = '/';
    }
    return 0;
}

int files_read(const char *path, struct buf *ret, struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, errno == ENOENT ? E_NOTFOUND : E_IO, "cannot open %s: %s", path,
                         strerror(errno));
    char piece[4096];
    ssize_t n;
    int rc = 0;
    while (rc == 0 && (n = read(fd, piece, sizeof(piece))) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        rc = n < 0 ? error_set(err, E_IO, "cannot read %s: %s", path, strerror(errno))
                   : buf_append(ret, piece, (size_t)n);
    }
    if (ret->error != 0)
        error_set(err, rc, "%s is too large: at most %zu bytes", path, ret->max_len);
    close(fd);
    return rc;
}

static int write_all(int fd, const char *data, size_t n)
{
    while (n > 0) {
        ssize_t done = write(fd, data, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return -1;
        data += done;
        n -= (size_t)done;
    }
    return 0;
}

int files_write(const char *path, const void *data, size_t n, struct error *err)
{
    char beside[PATH_BYTES];
    int len = snprintf(beside, sizeof(beside), "%s.%ld", path, (long)getpid());
    if (len < 0 || (size_t)len >= sizeof(beside))
        return error_set(err, E_IO, "the path %.100s... is too long", path);
    int fd = open(beside, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return error_set(err, E_IO, "cannot make %s: %s", beside, strerror(errno));
    int rc = write_all(fd, data, n);
    if (rc == 0)
        rc = fsync(fd);
    if (close(fd) != 0)
        rc = -1;
    if (rc == 0)
        rc = rename(beside, path);
    if (rc != 0) {
        error_set(err, E_IO, "cannot write %s: %s", path, strerror(errno));
        unlink(beside);
        return E_IO;
    }
    return 0;
}

int files_sync_folder_of(const char *path)
{
    char folder[PATH_BYTES];
    const char *slash = strrchr(path, '/');
    int n = slash == NULL ? snprintf(folder, sizeof(folder), ".")
                          : snprintf(folder, sizeof(folder), "%.*s", (int)(slash - path) + 1, path);
    if (n < 0 || (size_t)n >= sizeof(folder))
        return -1;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int rc = fsync(fd);
    close(fd);
    return rc == 0 || errno == EINVAL ? 0 : -1; /* some file systems have nothing to sync */
}

int files_sha256(const char *path, const atomic_bool *is_cancelled, uint8_t ret[32],
                 struct error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set(err, errno == ENOENT ? E_NOTFOUND : E_IO, "cannot open %s: %s", path,
                         strerror(errno));
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    char *buffer = malloc(BUFFER_BYTES);
    int rc = 0;
    ssize_t n = 0;
    if (hash == NULL || buffer == NULL || EVP_DigestInit_ex(hash, EVP_sha256(), NULL) != 1)
        rc = error_set(err, E_NOMEM, "out of memory for the hash of %s", path);
    while (rc == 0 && (n = read(fd, buffer, BUFFER_BYTES)) != 0) {
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            rc = error_set(err, E_IO, "cannot read %s: %s", path, strerror(errno));
        else if (is_cancelled != NULL && atomic_load(is_cancelled))
            rc = error_set(err, E_CANCELLED, "reading %s was cancelled", path);
        else
            EVP_DigestUpdate(hash, buffer, (size_t)n);
    }
    if (rc == 0)
        EVP_DigestFinal_ex(hash, ret, NULL);
    EVP_MD_CTX_free(hash);
    free(buffer);
    close(fd);
    return rc;
}

void files_hex(const uint8_t *data, size_t n, char *ret)
{
    for (size_t i = 0; i < n; i++)
        snprintf(ret + 2 * i, 3, "%02x", data[i]);
}

int files_unhex(const char *text, uint8_t *ret, size_t n)
{
    if (strlen(text) != 2 * n)
        return E_FORMAT;
    for (size_t i = 0; i < 2 * n; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return E_FORMAT;
        ret[i / 2] = (uint8_t)(i % 2 == 0 ? digit << 4 : ret[i / 2] | digit);
    }
    return 0;
}

const char *files_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}
