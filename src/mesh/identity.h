/* What the mesh needs of an identity beyond mesh.h. Nobody outside the folder includes it. */
#ifndef SHOAL_MESH_IDENTITY_H
#define SHOAL_MESH_IDENTITY_H

#include "mesh/mesh.h"

#include <openssl/ssl.h>

struct mesh_identity {
    EVP_PKEY *pkey;
    X509 *certificate; /* self-signed; holds the public key and nothing of interest */
    uint8_t key[32];   /* public */
    struct node_id id;
};

/* The name of a public key. */
void identity_id_of_key(const uint8_t key[32], struct node_id *ret_id);
/* Replaces the file's bytes as a whole, or leaves it as it was; the mode is 0600. With is_new an
 * existing file is kept, and that is UV_EEXIST. Errors: errno, with the path. Thread: any. */
int file_write_atomically(const char *path, const void *data, size_t len, bool is_new,
                          struct error *err);

#endif
