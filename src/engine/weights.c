#include "engine/weights.h"

#include "base/log.h"
#include "engine/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <ggml-cpu.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum place { PLACE_NONE, PLACE_MAPPED, PLACE_REPACKED, PLACE_PLAIN };

/* One slice on its way from the file to its tensor. */
struct load_item {
    struct tensor_slice slice;
    struct ggml_tensor *tensor;
    enum place place;
};

struct loader {
    struct weights *w;
    const struct model *model;
    const struct shard *shard;
    bool repack;
    ggml_backend_dev_t device;
    struct load_item *items;
    size_t n_items;
    int fd;
};

static bool is_matrix_role(enum role role)
{
    switch (role) {
    case ROLE_OUTPUT:
    case ROLE_ATTN_Q:
    case ROLE_ATTN_K:
    case ROLE_ATTN_V:
    case ROLE_ATTN_OUT:
    case ROLE_FFN_GATE:
    case ROLE_FFN_UP:
    case ROLE_FFN_DOWN:
        return true;
    default:
        return false;
    }
}

/* ggml's list of extra buffer types, asked for once: ranks may be threads that load at the same
 * time. */
static ggml_backend_buffer_type_t *repack_types;

static void find_repack_types(void)
{
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    ggml_backend_dev_get_extra_bufts_t get_types =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    repack_types = get_types != NULL ? get_types(device) : NULL;
}

/* The first extra CPU buffer type that can multiply by this weight, as ggml's own loaders choose
 * it; NULL when the file's layout is the best. The question needs a tensor that claims to live in
 * such a buffer. */
static ggml_backend_buffer_type_t find_repack_type(const struct loader *l,
                                                   struct ggml_tensor *weight)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_repack_types);
    ggml_backend_buffer_type_t found = NULL;
    for (ggml_backend_buffer_type_t *type = repack_types; type != NULL && *type != NULL && !found;
         type++) {
        struct ggml_init_params params = {.mem_size = 4 * ggml_tensor_overhead(), .no_alloc = true};
        struct ggml_context *ctx = ggml_init(params);
        if (ctx == NULL)
            return NULL;
        struct ggml_tensor *input = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, weight->ne[0], 512);
        struct ggml_tensor *product = ggml_mul_mat(ctx, weight, input);
        weight->buffer = ggml_backend_buft_alloc_buffer(*type, 0);
        if (weight->buffer != NULL && ggml_backend_dev_supports_op(l->device, product))
            found = *type;
        ggml_backend_buffer_free(weight->buffer);
        weight->buffer = NULL;
        ggml_free(ctx);
    }
    return found;
}

static int add_item(struct loader *l, enum role role, uint32_t layer,
                    struct ggml_tensor **ret_tensor, ggml_backend_buffer_type_t *repack_type,
                    struct error *err)
{
    struct load_item *item = &l->items[l->n_items];
    if (!shard_slice(l->shard, l->model, role, layer, &item->slice))
        return 0;
    const struct tensor_slice *s = &item->slice;
    struct ggml_tensor *t =
        s->tensor->n_dims == 1
            ? ggml_new_tensor_1d(l->w->context, (enum ggml_type)s->tensor->type, (int64_t)s->n_cols)
            : ggml_new_tensor_2d(l->w->context, (enum ggml_type)s->tensor->type, (int64_t)s->n_cols,
                                 (int64_t)s->n_rows);
    ggml_format_name(t, "%s.%u", role_name(role), layer);
    unsigned long long bytes = s->row_bytes * s->n_rows;
    if (ggml_nbytes(t) != bytes)
        return error_set(err, E_INTERNAL, "tensor '%s': ggml counts %zu bytes, the file %llu",
                         s->tensor->name, ggml_nbytes(t), bytes);

    item->tensor = t;
    /* Vectors are copied: they are small, and mapping one brings its neighbours in the file, too.
     */
    item->place =
        s->tensor->n_dims > 1 && s->row_bytes == s->row_stride_bytes ? PLACE_MAPPED : PLACE_PLAIN;
    if (l->repack && is_matrix_role(role)) {
        ggml_backend_buffer_type_t type = find_repack_type(l, t);
        if (type != NULL && (*repack_type == NULL || *repack_type == type)) {
            *repack_type = type;
            item->place = PLACE_REPACKED;
        }
    }
    l->n_items++;
    *ret_tensor = t;
    return 0;
}

/* Places all tensors of one kind, one after another, in a new buffer of this type. */
static int place_in_buffer(struct loader *l, enum place place, ggml_backend_buffer_type_t type,
                           ggml_backend_buffer_t *ret_buffer, uint64_t *ret_bytes,
                           struct error *err)
{
    size_t align = ggml_backend_buft_get_alignment(type), total = 0;
    for (size_t i = 0; i < l->n_items; i++)
        if (l->items[i].place == place)
            total += GGML_PAD(ggml_backend_buft_get_alloc_size(type, l->items[i].tensor), align);
    if (total == 0)
        return 0;
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(type, total);
    if (buffer == NULL)
        return error_set(err, E_NOMEM, "no memory for %zu MiB of weights", total >> 20);
    *ret_buffer = buffer;
    *ret_bytes = total;
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    memory_advise_huge(ggml_backend_buffer_get_base(buffer), total);

    char *address = ggml_backend_buffer_get_base(buffer);
    for (size_t i = 0; i < l->n_items; i++) {
        struct ggml_tensor *t = l->items[i].tensor;
        if (l->items[i].place != place)
            continue;
        if (ggml_backend_tensor_alloc(buffer, t, address) != GGML_STATUS_SUCCESS)
            return error_set(err, E_INTERNAL, "cannot place tensor '%s'", t->name);
        address += GGML_PAD(ggml_backend_buft_get_alloc_size(type, t), align);
    }
    return 0;
}

static int map_file(struct loader *l, struct error *err)
{
    struct weights *w = l->w;
    bool needed = false;
    for (size_t i = 0; i < l->n_items; i++)
        needed |= l->items[i].place == PLACE_MAPPED;
    if (!needed)
        return 0;
    w->map_bytes = gguf_file_size(l->model->file);
    w->map = mmap(NULL, w->map_bytes, PROT_READ, MAP_SHARED, l->fd, 0);
    if (w->map == MAP_FAILED) {
        w->map = NULL;
        return error_set(err, E_IO, "cannot map '%s': %s", gguf_file_path(l->model->file),
                         strerror(errno));
    }
    w->mapped = ggml_backend_cpu_buffer_from_ptr(w->map, w->map_bytes);
    if (w->mapped == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    ggml_backend_buffer_set_usage(w->mapped, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (size_t i = 0; i < l->n_items; i++) {
        struct load_item *item = &l->items[i];
        if (item->place != PLACE_MAPPED)
            continue;
        char *address = (char *)w->map + item->slice.file_offset;
        if (ggml_backend_tensor_alloc(w->mapped, item->tensor, address) != GGML_STATUS_SUCCESS)
            return error_set(err, E_INTERNAL, "cannot place tensor '%s'", item->tensor->name);
        size_t bytes = ggml_nbytes(item->tensor);
        /* The embedding table is only looked into, row by row: its pages come when they are used.
         */
        if (item->tensor != w->global[ROLE_TOKEN_EMBD])
            memory_prefault(address, bytes);
        w->bytes_mapped += bytes;
    }
    return 0;
}

static int read_bytes(const struct loader *l, uint64_t offset, void *data, size_t n,
                      struct error *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(l->fd, (char *)data + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return error_set(err, E_IO, "cannot read %zu bytes at %llu of '%s': %s", n,
                             (unsigned long long)offset, gguf_file_path(l->model->file),
                             got < 0 ? strerror(errno) : "the file has become shorter");
        done += (size_t)got;
    }
    return 0;
}

/* Brings one slice, row by row where it is not contiguous, into dst. Strided rows are read in
 * chunks of whole rows, so that a narrow slice of many rows does not cost one system call a row. */
static int read_slice(const struct loader *l, const struct tensor_slice *s, char *dst,
                      struct error *err)
{
    if (s->row_bytes == s->row_stride_bytes || s->n_rows == 1)
        return read_bytes(l, s->file_offset, dst, s->row_bytes * s->n_rows, err);

    enum { CHUNK_BYTES = 4 << 20 };
    uint64_t rows_per_chunk =
        CHUNK_BYTES / s->row_stride_bytes > 0 ? CHUNK_BYTES / s->row_stride_bytes : 1;
    char *chunk = malloc(rows_per_chunk * s->row_stride_bytes);
    if (chunk == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int rc = 0;
    for (uint64_t row = 0; row < s->n_rows && rc == 0; row += rows_per_chunk) {
        uint64_t n = s->n_rows - row < rows_per_chunk ? s->n_rows - row : rows_per_chunk;
        rc = read_bytes(l, s->file_offset + row * s->row_stride_bytes, chunk,
                        (n - 1) * s->row_stride_bytes + s->row_bytes, err);
        for (uint64_t i = 0; i < n && rc == 0; i++)
            memcpy(dst + (row + i) * s->row_bytes, chunk + i * s->row_stride_bytes, s->row_bytes);
    }
    free(chunk);
    return rc;
}

static int compare_size(const void *a, const void *b)
{
    const struct load_item *x = a, *y = b;
    size_t n = ggml_nbytes(x->tensor), m = ggml_nbytes(y->tensor);
    return n < m ? 1 : n > m ? -1 : 0;
}

/* A repacked tensor is set as a whole, from a copy that exists beside it for a moment. The largest
 * go first, while little else is resident, so that the copy does not raise the peak. The copy is
 * mapped, since malloc keeps what is freed. */
static int fill_repacked(const struct loader *l, const struct load_item *item, struct error *err)
{
    size_t bytes = ggml_nbytes(item->tensor);
    char *copy = memory_reserve(bytes);
    if (copy == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int rc = read_slice(l, &item->slice, copy, err);
    if (rc == 0)
        ggml_backend_tensor_set(item->tensor, copy, 0, bytes);
    memory_unreserve(copy, bytes);
    return rc;
}

static int fill(struct loader *l, struct error *err)
{
    qsort(l->items, l->n_items, sizeof(*l->items), compare_size);
    int rc = 0;
    for (size_t i = 0; i < l->n_items && rc == 0; i++) {
        const struct load_item *item = &l->items[i];
        if (item->place == PLACE_PLAIN)
            rc = read_slice(l, &item->slice, item->tensor->data, err);
        else if (item->place == PLACE_REPACKED)
            rc = fill_repacked(l, item, err);
    }
    return rc;
}

static int load(struct loader *l, struct error *err)
{
    struct weights *w = l->w;
    const struct shard *s = l->shard;
    uint32_t n_layers = s->layers.end - s->layers.begin;
    size_t n_max = ROLE_FIRST_OF_LAYER + (size_t)n_layers * ROLE_COUNT;

    struct ggml_init_params params = {.mem_size = (n_max + 1) * ggml_tensor_overhead(),
                                      .no_alloc = true};
    w->context = ggml_init(params);
    w->layer = calloc(n_layers + 1, sizeof(*w->layer));
    l->items = calloc(n_max, sizeof(*l->items));
    l->device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    if (w->context == NULL || w->layer == NULL || l->items == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    l->fd = open(gguf_file_path(l->model->file), O_RDONLY | O_CLOEXEC);
    if (l->fd < 0)
        return error_set(err, E_IO, "cannot open '%s': %s", gguf_file_path(l->model->file),
                         strerror(errno));

    ggml_backend_buffer_type_t repack_type = NULL;
    int rc = 0;
    for (enum role role = 0; role < ROLE_FIRST_OF_LAYER && rc == 0; role++)
        rc = add_item(l, role, 0, &w->global[role], &repack_type, err);
    for (uint32_t i = 0; i < n_layers; i++)
        for (enum role role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT && rc == 0; role++)
            rc = add_item(l, role, s->layers.begin + i, &w->layer[i][role], &repack_type, err);
    if (rc == 0 && repack_type != NULL)
        rc = place_in_buffer(l, PLACE_REPACKED, repack_type, &w->repacked, &w->bytes_repacked, err);
    if (rc == 0)
        rc = place_in_buffer(l, PLACE_PLAIN, ggml_backend_cpu_buffer_type(), &w->plain,
                             &w->bytes_plain, err);
    if (rc == 0)
        rc = fill(l, err);
    if (rc == 0)
        rc = map_file(l, err);
    return rc;
}

int weights_load(struct weights *w, const struct model *m, const struct shard *s, bool repack,
                 struct error *err)
{
    *w = (struct weights){0};
    struct loader l = {.w = w, .model = m, .shard = s, .repack = repack, .fd = -1};
    int rc = load(&l, err);
    if (l.fd >= 0)
        close(l.fd);
    free(l.items);
    if (rc != 0)
        weights_done(w);
    return rc;
}

void weights_done(struct weights *w)
{
    ggml_backend_buffer_free(w->mapped);
    ggml_backend_buffer_free(w->repacked);
    ggml_backend_buffer_free(w->plain);
    if (w->context != NULL)
        ggml_free(w->context);
    if (w->map != NULL)
        munmap(w->map, w->map_bytes);
    free(w->layer);
    *w = (struct weights){0};
}
