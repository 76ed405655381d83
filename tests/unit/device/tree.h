/* A made-up /proc and /sys in a temporary folder. */
#ifndef TESTS_DEVICE_TREE_H
#define TESTS_DEVICE_TREE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct tree {
    char root[64];
};

static inline void tree_init(struct tree *t)
{
    snprintf(t->root, sizeof(t->root), "/tmp/shoal-device-XXXXXX");
    assert_non_null(mkdtemp(t->root));
}

static inline int tree_remove_one(const char *path, const struct stat *s, int type, struct FTW *f)
{
    (void)s, (void)type, (void)f;
    return remove(path);
}

static inline void tree_done(struct tree *t)
{
    nftw(t->root, tree_remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static inline void tree_make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0700);
        *slash = '/';
    }
}

static inline void tree_write(const struct tree *t, const char *name, const void *data, size_t n)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", t->root, name);
    tree_make_folders(path);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, n, file), n);
    fclose(file);
}

static inline void tree_put(const struct tree *t, const char *name, const char *text)
{
    tree_write(t, name, text, strlen(text));
}

static inline void tree_folder(const struct tree *t, const char *name)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s/", t->root, name);
    tree_make_folders(path);
}

#endif
