/* The node's id: 16 random bytes, in a file of its data folder, so that it survives restarts. */
#include "base/rng.h"
#include "node/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int make_folder(const char *path, struct error *err)
{
    char part[4096];
    size_t len = strlen(path);
    if (len >= sizeof(part))
        return error_set(err, E_INVALID, "data folder's path is too long: %zu bytes", len);
    for (size_t i = 1; i <= len; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0700) != 0 && errno != EEXIST)
            return error_set(err, -errno, "cannot make folder %s: %s", part, strerror(errno));
    }
    return 0;
}

static int parse_id(const char *text, struct node_id *ret_id)
{
    for (size_t i = 0; i < sizeof(ret_id->bytes); i++) {
        unsigned v;
        if (sscanf(text + 2 * i, "%2x", &v) != 1)
            return E_FORMAT;
        ret_id->bytes[i] = (uint8_t)v;
    }
    return 0;
}

static int write_id(int fd, const char *path, struct node_id *ret_id, struct error *err)
{
    char text[33], line[34];
    int rc = rng_system(ret_id->bytes, sizeof(ret_id->bytes));
    if (rc != 0)
        return error_set(err, rc, "the system gives no random numbers for the node's id");
    snprintf(line, sizeof(line), "%s\n", node_id_text(ret_id, text));
    if (pwrite(fd, line, 33, 0) != 33 || fsync(fd) != 0)
        return error_set(err, E_IO, "cannot write %s: disk full?", path);
    return 0;
}

static int read_id(int fd, const char *path, struct node_id *ret_id, struct error *err)
{
    char text[40] = {0};
    ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
    if (n == 0)
        return write_id(fd, path, ret_id, err);
    if (n < 32 || strspn(text, "0123456789abcdef") != 32 || parse_id(text, ret_id) != 0)
        return error_set(err, E_FORMAT,
                         "%s does not hold 32 hexadecimal digits: remove it, and the node gets a "
                         "new id",
                         path);
    return 0;
}

int identity_load(const char *data_dir, struct node_id *ret_id, int *ret_lock, struct error *err)
{
    char path[4096];
    int rc = make_folder(data_dir, err);
    if (rc != 0)
        return rc;
    int len = snprintf(path, sizeof(path), "%s/node-id", data_dir);
    if (len < 0 || (size_t)len >= sizeof(path))
        return error_set(err, E_INVALID, "data folder's path is too long");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0)
        rc =
            error_set(err, E_BUSY,
                      "another node uses the data folder %s: stop it, or say --data-dir", data_dir);
    if (rc == 0)
        rc = read_id(fd, path, ret_id, err);
    if (rc != 0) {
        close(fd);
        return rc;
    }
    *ret_lock = fd;
    return 0;
}
