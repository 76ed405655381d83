#include "store/cards.h"

#include "base/words.h"
#include "model/arch.h"
#include "store/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

extern const char store_shipped_cards[]; /* share/models.json */

enum { USER_FILE_BYTES_MAX = 4 << 20 };

struct cards {
    json_t *shipped, *user;
    uint32_t n;
    struct card card[];
};

static const struct {
    const char *name;
    enum capability bit;
} capability_names[] = {
    {"completion", CAPABILITY_COMPLETION},
    {"tools", CAPABILITY_TOOLS},
    {"thinking", CAPABILITY_THINKING},
    {"embedding", CAPABILITY_EMBEDDING},
};
enum { N_CAPABILITIES = sizeof(capability_names) / sizeof(capability_names[0]) };

static const char *text_of(const json_t *doc, const char *key)
{
    const char *text = json_string_value(json_object_get(doc, key));
    return text != NULL ? text : "";
}

static uint32_t number_of(const json_t *doc, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(doc, key));
    return v > 0 && v <= UINT32_MAX ? (uint32_t)v : 0;
}

/* ---- reading ---- */

static uint32_t read_capabilities(const json_t *doc)
{
    const json_t *list = json_object_get(doc, "capabilities"), *item;
    uint32_t bits = 0;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(item);
        for (size_t k = 0; k < N_CAPABILITIES && name != NULL; k++)
            if (strcmp(name, capability_names[k].name) == 0)
                bits |= capability_names[k].bit;
    }
    return bits;
}

/* One item of "quantizations": a name, or an object that says more than the card. */
static int read_file(const struct card *k, const json_t *item, struct card_file *ret,
                     struct error *err)
{
    const char *name = json_is_string(item) ? json_string_value(item) : text_of(item, "name");
    const char *file =
        text_of(item, "file")[0] != '\0' ? text_of(item, "file") : text_of(k->doc, "file");
    *ret = (struct card_file){.repo = text_of(item, "repo"), .url = text_of(item, "url")};
    if (ret->repo[0] == '\0' && ret->url[0] == '\0') {
        ret->repo = text_of(k->doc, "repo");
        ret->url = text_of(k->doc, "url");
    }
    if (name[0] == '\0' || strlen(name) >= sizeof(ret->quantization))
        return error_set(err, E_FORMAT, "model %s: a quantization has no name, or too long a one",
                         k->name);
    memcpy(ret->quantization, name, strlen(name) + 1);
    if (file[0] == '\0')
        file = files_base_name(ret->url);
    const char *mark = strstr(file, "{quant}");
    int n = mark == NULL ? snprintf(ret->file, sizeof(ret->file), "%s", file)
                         : snprintf(ret->file, sizeof(ret->file), "%.*s%s%s", (int)(mark - file),
                                    file, name, mark + strlen("{quant}"));
    if (n <= 0 || (size_t)n >= sizeof(ret->file))
        return error_set(err, E_FORMAT, "model %s: the file of %s has no name, or too long a one",
                         k->name, name);
    if (ret->repo[0] == '\0' && ret->url[0] == '\0')
        return error_set(err, E_FORMAT, "model %s: neither 'repo' nor 'url' says where %s is",
                         k->name, name);
    const json_t *bytes = json_object_get(item, "bytes");
    const char *sha256 = text_of(item, "sha256");
    ret->size_bytes = json_integer_value(bytes) > 0 ? (uint64_t)json_integer_value(bytes) : 0;
    ret->has_sha256 = sha256[0] != '\0';
    if (ret->has_sha256 && files_unhex(sha256, ret->sha256, sizeof(ret->sha256)) != 0)
        return error_set(err, E_FORMAT, "model %s: the sha256 of %s is not 64 hexadecimal digits",
                         k->name, name);
    return 0;
}

static int read_card(const json_t *doc, bool is_user, struct card *ret, struct error *err)
{
    const json_t *list = json_object_get(doc, "quantizations"), *item;
    struct card_file file;
    size_t i;
    *ret = (struct card){
        .name = text_of(doc, "name"),
        .family = text_of(doc, "family"),
        .architecture = text_of(doc, "architecture"),
        .parameters = text_of(doc, "parameters"),
        .n_layers = number_of(doc, "layers"),
        .n_ctx = number_of(doc, "context"),
        .capabilities = read_capabilities(doc),
        .is_user = is_user,
        .doc = doc,
    };
    ret->can_run = arch_find(ret->architecture, strlen(ret->architecture)) != NULL;
    if (ret->name[0] == '\0' || strlen(ret->name) >= CARD_NAME_BYTES ||
        strchr(ret->name, '/') != NULL)
        return error_set(err, E_FORMAT,
                         "a model has no name, one of over %d bytes, or one with a slash",
                         CARD_NAME_BYTES - 1);
    if (json_array_size(list) == 0 || json_array_size(list) > CARD_QUANTIZATIONS_MAX)
        return error_set(err, E_FORMAT, "model %s: 'quantizations' must be a list of 1 to %d",
                         ret->name, CARD_QUANTIZATIONS_MAX);
    json_array_foreach(list, i, item)
    {
        int rc = read_file(ret, item, &file, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int read_cards(struct cards *c, const json_t *doc, bool is_user, struct error *err)
{
    const json_t *list = json_object_get(doc, "models"), *item;
    size_t i;
    if (!json_is_array(list))
        return error_set(err, E_FORMAT, "'models' must be a list");
    json_array_foreach(list, i, item)
    {
        int rc = read_card(item, is_user, &c->card[c->n], err);
        if (rc != 0)
            return rc;
        c->n++;
    }
    return 0;
}

static int read_user_file(const char *path, json_t **ret, struct error *err)
{
    struct buf text;
    struct error cause = {0};
    buf_init(&text, USER_FILE_BYTES_MAX);
    int rc = files_read(path, &text, &cause);
    if (rc == 0)
        rc = json_parse(buf_str(&text), text.len, ret, &cause);
    buf_done(&text);
    if (rc == E_NOTFOUND)
        return 0;
    if (rc != 0)
        *err = cause;
    return rc;
}

int cards_load(const char *user_path, struct cards **ret_cards, struct error *err)
{
    json_t *shipped = NULL, *user = NULL;
    struct cards *c = NULL;
    int rc = json_parse(store_shipped_cards, strlen(store_shipped_cards), &shipped, err);
    if (rc == 0 && user_path != NULL && read_user_file(user_path, &user, err) != 0)
        rc = error_wrap(err, E_FORMAT, "model cards in %s", user_path);
    size_t n = json_array_size(json_object_get(shipped, "models")) +
               json_array_size(json_object_get(user, "models"));
    if (rc == 0 && n > CARDS_MAX)
        rc = error_set(err, E_LIMIT, "there are %zu model cards; at most %d are possible", n,
                       CARDS_MAX);
    if (rc == 0)
        c = calloc(1, sizeof(*c) + n * sizeof(c->card[0]));
    if (rc == 0 && c == NULL)
        rc = error_set(err, E_NOMEM, "out of memory for the model cards");
    if (rc != 0) {
        json_decref(shipped);
        json_decref(user);
        return rc;
    }
    c->shipped = shipped;
    c->user = user;
    if (user != NULL && read_cards(c, user, true, err) != 0)
        rc = error_wrap(err, E_FORMAT, "model cards in %s", user_path);
    if (rc == 0)
        rc = read_cards(c, shipped, false, err);
    if (rc != 0) {
        cards_free(c);
        return rc;
    }
    *ret_cards = c;
    return 0;
}

void cards_free(struct cards *c)
{
    if (c == NULL)
        return;
    json_decref(c->shipped);
    json_decref(c->user);
    free(c);
}

uint32_t cards_count(const struct cards *c)
{
    return c->n;
}

const struct card *cards_at(const struct cards *c, uint32_t index)
{
    return index < c->n ? &c->card[index] : NULL;
}

/* ---- finding ---- */

static const char *find_quantization(const struct card *k, const char *text)
{
    const json_t *list = json_object_get(k->doc, "quantizations"), *item;
    size_t i;
    json_array_foreach(list, i, item)
    {
        const char *name = json_is_string(item) ? json_string_value(item) : text_of(item, "name");
        if (strcasecmp(name, text) == 0)
            return name;
    }
    return NULL;
}

/* Whether `text` is `name`, alone or with a quantization of the card behind it. */
static bool is_named(const struct card *k, const char *name, const char *text,
                     char ret_quantization[QUANTIZATION_BYTES])
{
    size_t n = strlen(name);
    if (strncasecmp(name, text, n) != 0)
        return false;
    ret_quantization[0] = '\0';
    if (text[n] == '\0')
        return true;
    if (text[n] != ':' && text[n] != '-')
        return false;
    const char *found = find_quantization(k, text + n + 1);
    if (found == NULL)
        return false;
    snprintf(ret_quantization, QUANTIZATION_BYTES, "%s", found);
    return true;
}

const struct card *cards_find(const struct cards *c, const char *name,
                              char ret_quantization[QUANTIZATION_BYTES])
{
    for (uint32_t i = 0; i < c->n; i++) {
        const struct card *k = &c->card[i];
        const json_t *list = json_object_get(k->doc, "aliases"), *item;
        size_t a;
        if (is_named(k, k->name, name, ret_quantization))
            return k;
        json_array_foreach(list, a, item)
        {
            const char *alias = json_string_value(item);
            if (alias != NULL && alias[0] != '\0' && is_named(k, alias, name, ret_quantization))
                return k;
        }
    }
    ret_quantization[0] = '\0';
    return NULL;
}

const struct card *cards_find_file(const struct cards *c, const char *file,
                                   char ret_quantization[QUANTIZATION_BYTES])
{
    struct card_file f;
    for (uint32_t i = 0; i < c->n; i++)
        for (uint32_t q = 0; card_file_at(&c->card[i], q, &f); q++)
            if (strcasecmp(files_base_name(f.file), file) == 0) {
                memcpy(ret_quantization, f.quantization, QUANTIZATION_BYTES);
                return &c->card[i];
            }
    ret_quantization[0] = '\0';
    return NULL;
}

const char *cards_suggest(const struct cards *c, const char *name)
{
    const char *nearest = NULL;
    size_t distance = 4; /* further away it is not a typing mistake */
    for (uint32_t i = 0; i < c->n; i++) {
        size_t d = word_distance(name, c->card[i].name);
        if (d < distance) {
            distance = d;
            nearest = c->card[i].name;
        }
    }
    return nearest;
}

uint32_t card_n_files(const struct card *k)
{
    return (uint32_t)json_array_size(json_object_get(k->doc, "quantizations"));
}

bool card_file_at(const struct card *k, uint32_t index, struct card_file *ret)
{
    const json_t *item = json_array_get(json_object_get(k->doc, "quantizations"), index);
    return item != NULL && read_file(k, item, ret, NULL) == 0;
}

int card_find_file(const struct card *k, const char *quantization, struct card_file *ret,
                   struct error *err)
{
    struct buf names;
    struct card_file file;
    buf_init(&names, 1024);
    for (uint32_t i = 0; card_file_at(k, i, &file); i++) {
        if (quantization[0] == '\0' || strcasecmp(file.quantization, quantization) == 0) {
            *ret = file;
            buf_done(&names);
            return 0;
        }
        buf_printf(&names, "%s%s", i > 0 ? ", " : "", file.quantization);
    }
    int rc = error_set(err, E_NOTFOUND, "model %s is not there as %s, but as %s", k->name,
                       quantization, buf_str(&names));
    buf_done(&names);
    return rc;
}

/* ---- JSON ---- */

int capabilities_append_json(uint32_t capabilities, struct buf *b)
{
    const char *comma = "";
    buf_append_char(b, '[');
    for (size_t k = 0; k < N_CAPABILITIES; k++)
        if (capabilities & capability_names[k].bit) {
            buf_printf(b, "%s\"%s\"", comma, capability_names[k].name);
            comma = ",";
        }
    return buf_append_char(b, ']');
}

static void append_text(struct buf *b, const char *key, const char *text)
{
    buf_printf(b, ",\"%s\":", key);
    json_append_string(b, text, strlen(text));
}

int card_append_json(const struct card *k, struct buf *b)
{
    struct card_file f;
    buf_append_str(b, "{\"name\":");
    json_append_string(b, k->name, strlen(k->name));
    append_text(b, "family", k->family);
    append_text(b, "architecture", k->architecture);
    append_text(b, "parameters", k->parameters);
    buf_printf(b, ",\"layers\":%u,\"context\":%u,\"can_run\":%s,\"is_user\":%s,\"capabilities\":",
               k->n_layers, k->n_ctx, k->can_run ? "true" : "false", k->is_user ? "true" : "false");
    capabilities_append_json(k->capabilities, b);
    const json_t *aliases = json_object_get(k->doc, "aliases");
    if (json_is_array(aliases)) {
        buf_append_str(b, ",\"aliases\":");
        json_append_value(b, aliases);
    }
    buf_append_str(b, ",\"quantizations\":[");
    for (uint32_t i = 0; card_file_at(k, i, &f); i++) {
        buf_append_str(b, i > 0 ? ",{\"name\":" : "{\"name\":");
        json_append_string(b, f.quantization, strlen(f.quantization));
        append_text(b, "file", f.file);
        append_text(b, f.repo[0] != '\0' ? "repo" : "url", f.repo[0] != '\0' ? f.repo : f.url);
        if (f.size_bytes > 0)
            buf_printf(b, ",\"bytes\":%llu", (unsigned long long)f.size_bytes);
        if (f.has_sha256) {
            char hex[65];
            files_hex(f.sha256, sizeof(f.sha256), hex);
            append_text(b, "sha256", hex);
        }
        buf_append_char(b, '}');
    }
    return buf_append_str(b, "]}");
}
