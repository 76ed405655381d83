/*
 * Reading fields of a request's JSON strictly: each has the right type and range, or the error
 * names it by its path ("messages[2].content"). A field that is absent or null keeps what the
 * caller has in *ret (the APIs treat both alike). All return 0, or -1 with the error filled in.
 * Thread: any, one at a time.
 */
#ifndef SHOAL_API_REQUEST_FIELDS_H
#define SHOAL_API_REQUEST_FIELDS_H

#include "api/api_error.h"
#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

enum { FIELD_PATH_BYTES = 96 };

/* NULL when it is absent or null, or object is none. */
json_t *field_get(const json_t *object, const char *name);
/* "an object", "a string" .. for messages. */
const char *field_kind(const json_t *v);

int field_refuse_type(struct api_error *e, const char *path, const char *wanted, const json_t *v);
int field_refuse_value(struct api_error *e, const char *path, const char *why);
int field_refuse_feature(struct api_error *e, const char *path, const char *why);
int field_refuse_missing(struct api_error *e, const char *path);

/* path NULL: the name itself. */
int field_bool(struct api_error *e, const json_t *object, const char *name, const char *path,
               bool *ret);
int field_number(struct api_error *e, const json_t *object, const char *name, const char *path,
                 double min, double max, float *ret);
int field_integer(struct api_error *e, const json_t *object, const char *name, const char *path,
                  json_int_t min, json_int_t max, json_int_t *ret);
/* Text without NUL. Borrows the document. */
int field_string(struct api_error *e, const json_t *object, const char *name, const char *path,
                 const char **ret);
/* Sets *ret NULL when it is absent. */
int field_object(struct api_error *e, const json_t *object, const char *name, const char *path,
                 json_t **ret);
int field_array(struct api_error *e, const json_t *object, const char *name, const char *path,
                json_t **ret);

/* 1 .. max letters, digits, '_', '-' or '.': what needs no care in a template or a log. */
bool field_is_plain_name(const char *text, size_t len, size_t max);

#endif
