/* See linux_files.h. */
#ifdef __linux__
#include "device/linux_files.h"

#include "base/utf8.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Returns false when the path is too long. */
static bool make_path(char path[SYS_PATH_MAX], const char *root, const char *fmt, va_list args)
{
    int n = snprintf(path, SYS_PATH_MAX, "%s", root == NULL ? "" : root);
    if (n < 0 || n >= SYS_PATH_MAX)
        return false;
    int more = vsnprintf(path + n, (size_t)(SYS_PATH_MAX - n), fmt, args);
    return more >= 0 && more < SYS_PATH_MAX - n;
}

static size_t read_path(const char *path, char *ret_text, size_t size)
{
    size_t n = 0;
    ret_text[0] = '\0';
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return 0;
    while (n < size - 1) {
        ssize_t got = read(fd, ret_text + n, size - 1 - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        n += (size_t)got;
    }
    close(fd);
    while (n > 0 && strchr(" \t\r\n", ret_text[n - 1]) != NULL)
        n--;
    ret_text[n] = '\0';
    return n;
}

size_t sys_read(const char *root, char *ret_text, size_t size, const char *fmt, ...)
{
    char path[SYS_PATH_MAX];
    va_list args;
    va_start(args, fmt);
    bool is_path = make_path(path, root, fmt, args);
    va_end(args);
    ret_text[0] = '\0';
    return is_path ? read_path(path, ret_text, size) : 0;
}

bool sys_read_number(const char *root, int64_t *ret_v, const char *fmt, ...)
{
    char path[SYS_PATH_MAX], text[64];
    va_list args;
    va_start(args, fmt);
    bool is_path = make_path(path, root, fmt, args);
    va_end(args);
    if (!is_path || read_path(path, text, sizeof(text)) == 0)
        return false;
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0')
        return false;
    *ret_v = v;
    return true;
}

bool sys_exists(const char *root, const char *fmt, ...)
{
    char path[SYS_PATH_MAX];
    va_list args;
    va_start(args, fmt);
    bool is_path = make_path(path, root, fmt, args);
    va_end(args);
    return is_path && access(path, F_OK) == 0;
}

bool sys_find_line(const char *text, const char *key, char *ret_rest, size_t size)
{
    size_t n_key = strlen(key);
    for (const char *line = text; line != NULL && *line != '\0';) {
        size_t n = strcspn(line, "\n");
        if (n >= n_key && memcmp(line, key, n_key) == 0) {
            snprintf(ret_rest, size, "%.*s", (int)(n - n_key), line + n_key);
            return true;
        }
        line += n + (line[n] == '\n');
    }
    return false;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

void sys_list(const char *root, struct sys_names *ret, const char *fmt, ...)
{
    char path[SYS_PATH_MAX];
    va_list args;
    va_start(args, fmt);
    bool is_path = make_path(path, root, fmt, args);
    va_end(args);
    ret->n = 0;
    DIR *dir = is_path ? opendir(path) : NULL;
    if (dir == NULL)
        return;
    const struct dirent *entry;
    while (ret->n < SYS_NAMES_MAX && (entry = readdir(dir)) != NULL) {
        size_t n = strlen(entry->d_name);
        if (entry->d_name[0] == '.' || n >= SYS_NAME_MAX)
            continue;
        memcpy(ret->name[ret->n++], entry->d_name, n + 1);
    }
    closedir(dir);
    qsort(ret->name, ret->n, sizeof(ret->name[0]), compare_names);
}

void sys_copy_text(char *to, size_t size, const char *from)
{
    size_t n = 0, left = strlen(from);
    while (left > 0) {
        size_t len = utf8_sequence_length(from, left);
        if (len == 0 || n + len >= size)
            break;
        bool is_space = (uint8_t)*from <= ' ' || *from == 0x7f;
        if (!is_space) {
            memcpy(to + n, from, len);
            n += len;
        } else if (n > 0 && to[n - 1] != ' ') {
            to[n++] = ' ';
        }
        from += len;
        left -= len;
    }
    while (n > 0 && to[n - 1] == ' ')
        n--;
    to[n] = '\0';
}
#endif
