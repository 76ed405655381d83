/* Bytes of a connection through the HTTP parser, in one piece and cut up: both must see the same
 * requests, and what is accepted must keep the promises of the header. The first byte chooses how
 * it is cut. */
#include "api/http_parser.h"
#include "base/limits.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

static void describe(const struct http_request *r, struct buf *out)
{
    check(r->path[0] == '/' || strcmp(r->path, "*") == 0);
    check(strlen(r->path) <= LIMIT_HTTP_URL_BYTES && r->n_headers <= LIMIT_HTTP_HEADERS);
    check(r->body_len <= LIMIT_HTTP_BODY_BYTES && r->body[r->body_len] == '\0');
    for (const char *c = r->path; *c != '\0'; c++)
        check((unsigned char)*c >= 0x20 && *c != 0x7f);
    bool has_length = false, has_coding = false;
    buf_printf(out, "%s %s?%s %s %d %d\n", r->method, r->path, r->query, r->host, r->is_http10,
               r->keep_alive);
    for (size_t i = 0; i < r->n_headers; i++) {
        const char *value = r->headers[i].value;
        check(r->headers[i].name[0] != '\0' && strpbrk(r->headers[i].name, " \t:\r\n") == NULL);
        check(strpbrk(value, "\r\n") == NULL && value[0] != ' ' && value[0] != '\t');
        has_length = has_length || strcmp(r->headers[i].name, "content-length") == 0;
        has_coding = has_coding || strcmp(r->headers[i].name, "transfer-encoding") == 0;
        buf_printf(out, "%s: %s\n", r->headers[i].name, value);
    }
    check(!(has_length && has_coding) && (has_length || has_coding || r->body_len == 0));
    buf_append(out, r->body, r->body_len);
}

static void run(const char *data, size_t size, unsigned cut, struct buf *out)
{
    struct http_parser p;
    http_parser_init(&p);
    bool is_over = false;
    for (size_t at = 0; at < size && !is_over;) {
        /* cut 0: all at once; else pieces of 1 to 16 bytes that depend on the place. */
        size_t len = cut == 0 ? size - at : 1 + (at * 7 + cut) % 16;
        len = len < size - at ? len : size - at;
        /* An exact copy, so that a read past the piece is seen. */
        char *piece = malloc(len);
        check(piece != NULL);
        memcpy(piece, data + at, len);
        for (size_t used, done = 0; done < len && !is_over; done += used) {
            switch (http_parser_feed(&p, piece + done, len - done, &used)) {
            case HTTP_PARSE_MORE:
                check(used == len - done);
                break;
            case HTTP_PARSE_HEAD:
                check(!http_parser_expects_continue(&p) || !http_parser_request(&p)->is_http10);
                break;
            case HTTP_PARSE_DONE:
                check(used > 0);
                describe(http_parser_request(&p), out);
                http_parser_next(&p);
                break;
            default:
                check(p.status >= 400 && p.status < 600 && p.problem != NULL);
                /* Of several reasons any may be seen first; that it is refused must not vary. */
                buf_append_str(out, "refused");
                is_over = true;
                break;
            }
        }
        free(piece);
        at += len;
    }
    http_parser_done(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf whole, cut;
    if (size < 2)
        return 0;
    buf_init(&whole, 64u << 20);
    buf_init(&cut, 64u << 20);
    run((const char *)data + 1, size - 1, 0, &whole);
    run((const char *)data + 1, size - 1, 1 + data[0], &cut);
    if (whole.len != cut.len || memcmp(buf_str(&whole), buf_str(&cut), whole.len) != 0) {
        fprintf(stderr, "whole: %s\ncut: %s\n", buf_str(&whole), buf_str(&cut));
        abort();
    }
    buf_done(&whole);
    buf_done(&cut);
    return 0;
}
