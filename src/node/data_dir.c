/* The folder in which a node keeps what must survive: one node at a time. */
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

int data_dir_lock(const char *data_dir, int *ret_lock, struct error *err)
{
    char path[4096];
    int rc = make_folder(data_dir, err);
    if (rc != 0)
        return rc;
    int len = snprintf(path, sizeof(path), "%s/lock", data_dir);
    if (len < 0 || (size_t)len >= sizeof(path))
        return error_set(err, E_INVALID, "data folder's path is too long");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(err, -errno, "cannot open %s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        close(fd);
        return error_set(err, E_BUSY,
                         "another node uses the data folder %s: stop it, or say --data-dir",
                         data_dir);
    }
    *ret_lock = fd;
    return 0;
}
