#include "engine/weights_memory.h"

#include "engine/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int chunk_new(ggml_backend_buffer_type_t type, size_t bytes, struct weights_chunk **ret_chunk,
              struct error *err)
{
    struct weights_chunk *c = calloc(1, sizeof(*c));
    ggml_backend_buffer_t buffer = c != NULL ? ggml_backend_buft_alloc_buffer(type, bytes) : NULL;
    if (buffer == NULL) {
        free(c);
        return error_set(err, E_NOMEM, "no memory for %zu MiB of weights in %s", bytes >> 20,
                         ggml_backend_buft_name(type));
    }
    ggml_backend_dev_t device = ggml_backend_buft_get_device(type);
    bool is_device =
        device != NULL && ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU;
    *c = (struct weights_chunk){.buffer = buffer,
                                .base = ggml_backend_buffer_get_base(buffer),
                                .bytes = bytes,
                                .is_device = is_device,
                                .n_refs = 1};
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    if (!is_device)
        memory_advise_huge(c->base, bytes);
    *ret_chunk = c;
    return 0;
}

int chunk_map(int fd, size_t bytes, const char *path, struct weights_chunk **ret_chunk,
              struct error *err)
{
    struct weights_chunk *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    void *base = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) {
        free(c);
        return error_set(err, E_IO, "cannot map '%s': %s", path, strerror(errno));
    }
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(base, bytes);
    if (buffer == NULL) {
        munmap(base, bytes);
        free(c);
        return error_set(err, E_NOMEM, "out of memory");
    }
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    *c = (struct weights_chunk){
        .buffer = buffer, .base = base, .bytes = bytes, .is_file = true, .n_refs = 1};
    *ret_chunk = c;
    return 0;
}

struct weights_chunk *chunk_ref(struct weights_chunk *c)
{
    c->n_refs++;
    return c;
}

void chunk_unref(struct weights_chunk *c)
{
    if (c == NULL || --c->n_refs > 0)
        return;
    if (!c->is_file && !c->is_device)
        memory_discard(c->base, c->bytes); /* malloc might keep what is freed */
    ggml_backend_buffer_free(c->buffer);
    if (c->is_file)
        munmap(c->base, c->bytes);
    free(c);
}

static int compare_address(const void *a, const void *b)
{
    const struct weights_piece *x = *(struct weights_piece *const *)a,
                               *y = *(struct weights_piece *const *)b;
    return x->address < y->address ? -1 : x->address > y->address;
}

/* Pieces of one chunk follow each other in the order of addresses, since chunks do not overlap. Two
 * pieces of a file may: a tied output head is part of the embedding table. */
void chunk_discard_rest(struct weights_piece **pieces, size_t n)
{
    char *end = NULL; /* of what is known to be in use, or known to be given back */
    if (n > 0)
        qsort(pieces, n, sizeof(struct weights_piece *), compare_address);
    for (size_t i = 0; i < n; i++) {
        struct weights_piece *p = pieces[i];
        const struct weights_chunk *c = p->chunk;
        if (c->is_device) /* its addresses are nobody's here */
            continue;
        if (i == 0 || pieces[i - 1]->chunk != c)
            end = c->base;
        if (p->address > end)
            memory_discard(end, (size_t)(p->address - end));
        if (p->address + p->bytes > end)
            end = p->address + p->bytes;
        if ((i + 1 == n || pieces[i + 1]->chunk != c) && c->base + c->bytes > end)
            memory_discard(end, (size_t)(c->base + c->bytes - end));
    }
}
