/* The leaves of the hot path as machine code: what every small message passes, and no more.
 *
 * Each function here is the twin of a function in Python, which stays the definition. It does the
 * usual case only: exact types, small sizes, bytes as expected. For anything else it returns NULL
 * without an exception, and the definition is called with the same arguments: it decides, and
 * raises what there is to raise. tests/test_native.py holds each twin against its definition.
 *
 * Rules:
 * - The GIL guards the contexts of a Cipher, and lists against changes by other threads. To make a
 *   tuple or a list may collect garbage, so Python code may run, and another thread: none is made
 *   between the first use of a context, or of a list's items, and the last.
 * - No keys but in the contexts of a Cipher, which OpenSSL clears when it frees them. What did not
 *   open is cleared too.
 * - Without OpenSSL's headers (WITH_OPENSSL is not defined) there are no sealing and no opening.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#ifdef WITH_OPENSSL
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#endif

typedef PyObject *const *Args;

#define LARGE (64 << 10)     /* broker/wire.py; a larger body goes the long way, for fewer copies */
#define MOST_TAG_BYTES 512   /* protocol/list_names.py */
#define MOST_NAME_BYTES 4096 /* far more than any list's name has */
#define MOST_NAMES 4096
#define DIGITS 20            /* of a 64-bit number */

/* ---- numbers and pieces of RESP -------------------------------------------------------------- */

static char *put(char *at, const char *bytes, size_t count) {
    memcpy(at, bytes, count);
    return at + count;
}

#define PUT(at, text) put(at, text, sizeof(text) - 1)

static char *put_number(char *at, unsigned long long number) {
    char digits[DIGITS], *first = digits + DIGITS;
    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    return put(at, first, (size_t)(digits + DIGITS - first));
}

static char *put_bulk(char *at, const char *bytes, size_t count) {
    at = PUT(put_number(PUT(at, "$"), count), "\r\n");
    return PUT(put(at, bytes, count), "\r\n");
}

#define BULK_BYTES(count) ((count) + DIGITS + 5) /* the most that put_bulk writes */

/* Bytes of exactly that type and of at most this size, or NULL. */
static const char *bytes_of(PyObject *object, Py_ssize_t most, Py_ssize_t *count) {
    if (!PyBytes_CheckExact(object) || (*count = PyBytes_GET_SIZE(object)) > most)
        return NULL;
    return PyBytes_AS_STRING(object);
}

/* A whole number from 0 that fits into 64 bits with a sign, or -1. */
static long long number_of(PyObject *object) {
    int overflow;
    if (!PyLong_CheckExact(object))
        return -1;
    return PyLong_AsLongLongAndOverflow(object, &overflow); /* -1 for what does not fit */
}

/* ---- protocol/list_names.py ------------------------------------------------------------------ */

static int is_plain(unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= ',' && c <= ':') || (c >= 'A' && c <= 'Z') ||
           c == '_' || c == '~' || c == '>';
}

/* encode_tag(tag): tags of characters that stay as they are. */
static PyObject *encode_tag(Args args, Py_ssize_t count) {
    if (count != 1 || !PyUnicode_CheckExact(args[0]) || !PyUnicode_IS_COMPACT_ASCII(args[0]))
        return NULL;
    Py_ssize_t size = PyUnicode_GET_LENGTH(args[0]);
    const char *text = PyUnicode_DATA(args[0]);
    if (size < 1 || size > MOST_TAG_BYTES)
        return NULL;
    for (Py_ssize_t i = 0; i < size; i++)
        if (!is_plain((unsigned char)text[i]))
            return NULL;
    return PyBytes_FromStringAndSize(text, size);
}

/* ---- broker/wire.py -------------------------------------------------------------------------- */

/* pack_push(name, (head, body), ttl_ms): elements of less than LARGE, in one piece. */
static PyObject *pack_push(Args args, Py_ssize_t count) {
    Py_ssize_t name_size, head_size, body_size;
    const char *name, *head, *body;
    long long ttl;
    if (count != 3 || !PyTuple_CheckExact(args[1]) || PyTuple_GET_SIZE(args[1]) != 2 ||
        !(name = bytes_of(args[0], MOST_NAME_BYTES, &name_size)) ||
        !(head = bytes_of(PyTuple_GET_ITEM(args[1], 0), LARGE, &head_size)) ||
        !(body = bytes_of(PyTuple_GET_ITEM(args[1], 1), LARGE, &body_size)) ||
        head_size + body_size >= LARGE || (ttl = number_of(args[2])) < 0)
        return NULL;
    char digits[DIGITS];
    size_t most = 128 + 2 * BULK_BYTES(name_size) + BULK_BYTES(head_size + body_size);
    PyObject *list = PyList_New(1), *piece = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)most);
    if (!list || !piece) {
        Py_XDECREF(list);
        Py_XDECREF(piece);
        return NULL;
    }
    char *start = PyBytes_AS_STRING(piece), *at = PUT(start, "*3\r\n$5\r\nRPUSH\r\n");
    at = put_bulk(at, name, (size_t)name_size);
    at = PUT(put_number(PUT(at, "$"), (size_t)(head_size + body_size)), "\r\n");
    at = put(put(at, head, (size_t)head_size), body, (size_t)body_size);
    at = put_bulk(PUT(at, "\r\n*3\r\n$7\r\nPEXPIRE\r\n"), name, (size_t)name_size);
    at = put_bulk(at, digits, (size_t)(put_number(digits, (unsigned long long)ttl) - digits));
    if (_PyBytes_Resize(&piece, at - start) < 0) {
        Py_DECREF(list);
        return NULL;
    }
    PyList_SET_ITEM(list, 0, piece);
    return list;
}

/* pack_blpops(names, seconds): a list or tuple of names. */
static PyObject *pack_blpops(Args args, Py_ssize_t count) {
    if (count != 2 || !(PyList_CheckExact(args[0]) || PyTuple_CheckExact(args[0])) ||
        !PyFloat_CheckExact(args[1]) || !(PyFloat_AS_DOUBLE(args[1]) > 0) ||
        PySequence_Fast_GET_SIZE(args[0]) > MOST_NAMES)
        return NULL;
    PyObject **names = PySequence_Fast_ITEMS(args[0]);
    Py_ssize_t many = PySequence_Fast_GET_SIZE(args[0]), size;
    char *seconds = PyOS_double_to_string(PyFloat_AS_DOUBLE(args[1]), 'f', 3, 0, NULL);
    if (!seconds)
        return NULL;
    size_t seconds_size = strlen(seconds), most = 0;
    PyObject *packed = NULL;
    for (Py_ssize_t i = 0; i < many; i++) {
        if (!bytes_of(names[i], MOST_NAME_BYTES, &size))
            goto done;
        most += sizeof("*3\r\n$5\r\nBLPOP\r\n") + BULK_BYTES((size_t)size) + BULK_BYTES(seconds_size);
    }
    packed = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)most);
    if (!packed)
        goto done;
    char *start = PyBytes_AS_STRING(packed), *at = start;
    for (Py_ssize_t i = 0; i < many; i++) {
        const char *name = bytes_of(names[i], MOST_NAME_BYTES, &size);
        at = put_bulk(PUT(at, "*3\r\n$5\r\nBLPOP\r\n"), name, (size_t)size);
        at = put_bulk(at, seconds, seconds_size);
    }
    _PyBytes_Resize(&packed, at - start);
done:
    PyMem_Free(seconds);
    return packed;
}

/* ---- broker/socket_wire.py ------------------------------------------------------------------- */

/* only_element(came, name): the element, or None, as the definition says. */
static PyObject *only_element(Args args, Py_ssize_t count) {
    Py_ssize_t came_size, name_size;
    const char *came, *name;
    if (count != 2 || !(came = bytes_of(args[0], PY_SSIZE_T_MAX, &came_size)) ||
        !(name = bytes_of(args[1], MOST_NAME_BYTES, &name_size)))
        return NULL;
    char head[MOST_NAME_BYTES + 2 * DIGITS], number[DIGITS];
    size_t head_size = (size_t)(PUT(put_bulk(PUT(head, "*2\r\n"), name, (size_t)name_size), "$") - head);
    if ((size_t)came_size < head_size || memcmp(came, head, head_size))
        Py_RETURN_NONE;
    const char *digits = came + head_size, *end = came + came_size;
    const char *line_end = memchr(digits, '\r', (size_t)(end - digits));
    if (!line_end || end - line_end < 4 || line_end[1] != '\n')
        Py_RETURN_NONE;
    Py_ssize_t size = end - line_end - 4; /* the only one that fits */
    size_t written = (size_t)(put_number(number, (unsigned long long)size) - number);
    if ((size_t)(line_end - digits) != written || memcmp(digits, number, written))
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(line_end + 2, size);
}

/* ---- protocol/seal.py ------------------------------------------------------------------------ */

#ifdef WITH_OPENSSL
#define KEY_BYTES 32
#define NONCE_BYTES 12
#define SEAL_BYTES 16

/* The header of a whole DATA frame, see protocol/frame.py: where the fields are that differ. */
enum { ENCODING_AT = 4, PART_AT = 5, SEQ_AT = 13, PREVIOUS_AT = 21, ACKED_AT = 29, HEADER_BYTES = 37 };

/* The base of DataKey: one AES-256-GCM key. */
typedef struct {
    PyObject_HEAD
    EVP_CIPHER_CTX *seal, *open;
    PyObject *encodings; /* a tuple: what the numbers in headers stand for */
    unsigned char header[HEADER_BYTES]; /* of any whole frame */
} Cipher;

static PyTypeObject CipherType;

static void put_field(unsigned char *at, long long number) {
    for (int i = 0; i < 8; i++)
        at[i] = (unsigned char)((unsigned long long)number >> 8 * i);
}

static long long field(const unsigned char *at) {
    unsigned long long number = 0;
    for (int i = 8; i--;)
        number = number << 8 | at[i];
    return (long long)number;
}

/* Begin to seal or open frame `seq`: its nonce, and what is authenticated besides the body. */
static int begin(EVP_CIPHER_CTX *context, long long seq, const char *name, Py_ssize_t name_size,
                 const unsigned char *header) {
    unsigned char nonce[NONCE_BYTES] = {0};
    int done;
    for (int i = 0; i < 8; i++)
        nonce[NONCE_BYTES - 1 - i] = (unsigned char)((unsigned long long)seq >> 8 * i);
    return EVP_CipherInit_ex(context, NULL, NULL, NULL, nonce, -1) > 0 &&
           EVP_CipherUpdate(context, NULL, &done, (const unsigned char *)name, (int)name_size) > 0 &&
           EVP_CipherUpdate(context, NULL, &done, header, HEADER_BYTES) > 0;
}

static int seal(EVP_CIPHER_CTX *context, unsigned char *out, const char *body, Py_ssize_t size) {
    int done;
    return EVP_EncryptUpdate(context, out, &done, (const unsigned char *)body, (int)size) > 0 &&
           EVP_EncryptFinal_ex(context, out + size, &done) > 0 &&
           EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, SEAL_BYTES, out + size) > 0;
}

static int open_sealed(EVP_CIPHER_CTX *context, unsigned char *out, const unsigned char *sealed,
                       Py_ssize_t size) {
    int done;
    return EVP_DecryptUpdate(context, out, &done, sealed, (int)size) > 0 &&
           EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, SEAL_BYTES,
                               (void *)(sealed + size)) > 0 &&
           EVP_DecryptFinal_ex(context, out + size, &done) > 0;
}

static Cipher *cipher_of(PyObject *object) {
    return PyObject_TypeCheck(object, &CipherType) ? (Cipher *)object : NULL;
}

/* seal_whole(key, name, seq, encoding, acked, body): (header, sealed body). */
static PyObject *seal_whole(Args args, Py_ssize_t count) {
    Cipher *self;
    Py_ssize_t name_size, body_size, encoding = 0;
    const char *name, *body;
    long long seq, acked;
    if (count != 6 || !(self = cipher_of(args[0])) || !self->encodings ||
        !(name = bytes_of(args[1], MOST_NAME_BYTES, &name_size)) || (seq = number_of(args[2])) < 0 ||
        (acked = number_of(args[4])) < 0 || !(body = bytes_of(args[5], LARGE, &body_size)))
        return NULL;
    while (PyTuple_GET_ITEM(self->encodings, encoding) != args[3])
        if (++encoding == PyTuple_GET_SIZE(self->encodings))
            return NULL;
    PyObject *header = PyBytes_FromStringAndSize((const char *)self->header, HEADER_BYTES);
    PyObject *sealed = PyBytes_FromStringAndSize(NULL, body_size + SEAL_BYTES);
    PyObject *both = header && sealed ? PyTuple_Pack(2, header, sealed) : NULL;
    if (both) {
        unsigned char *head = (unsigned char *)PyBytes_AS_STRING(header);
        head[ENCODING_AT] = (unsigned char)encoding;
        put_field(head + SEQ_AT, seq);
        put_field(head + ACKED_AT, acked);
        if (!begin(self->seal, seq, name, name_size, head) ||
            !seal(self->seal, (unsigned char *)PyBytes_AS_STRING(sealed), body, body_size)) {
            ERR_clear_error(); /* the ssl module looks there after its own calls */
            Py_CLEAR(both);
        }
    }
    Py_XDECREF(header);
    Py_XDECREF(sealed);
    return both;
}

/* open_whole(key, name, element): (seq, encoding, acked, body) of a whole frame that opens. */
static PyObject *open_whole(Args args, Py_ssize_t count) {
    Cipher *self;
    Py_ssize_t name_size, size;
    const char *name, *element;
    if (count != 3 || !(self = cipher_of(args[0])) || !self->encodings ||
        !(name = bytes_of(args[1], MOST_NAME_BYTES, &name_size)) ||
        !(element = bytes_of(args[2], LARGE, &size)) || size < HEADER_BYTES + SEAL_BYTES)
        return NULL;
    const unsigned char *header = (const unsigned char *)element;
    long long seq = field(header + SEQ_AT), acked = field(header + ACKED_AT);
    if (memcmp(header, self->header, ENCODING_AT) ||
        header[ENCODING_AT] >= PyTuple_GET_SIZE(self->encodings) ||
        memcmp(header + PART_AT, self->header + PART_AT, SEQ_AT - PART_AT) || seq <= 0 ||
        field(header + PREVIOUS_AT) != 0 || acked < 0)
        return NULL;
    size -= HEADER_BYTES + SEAL_BYTES;
    PyObject *body = PyBytes_FromStringAndSize(NULL, size);
    if (!body)
        return NULL;
    unsigned char *out = (unsigned char *)PyBytes_AS_STRING(body);
    if (begin(self->open, seq, name, name_size, header) &&
        open_sealed(self->open, out, header + HEADER_BYTES, size))
        return Py_BuildValue("LOLN", seq, PyTuple_GET_ITEM(self->encodings, header[ENCODING_AT]),
                             acked, body);
    ERR_clear_error();
    OPENSSL_cleanse(out, (size_t)size);
    Py_DECREF(body);
    return NULL;
}

static void cipher_clear(Cipher *self) {
    EVP_CIPHER_CTX_free(self->seal);
    EVP_CIPHER_CTX_free(self->open);
    self->seal = self->open = NULL;
    Py_CLEAR(self->encodings);
}

/* Cipher(key, header, encodings) */
static int cipher_init(Cipher *self, PyObject *args, PyObject *keywords) {
    const char *key, *header;
    Py_ssize_t key_size, header_size;
    PyObject *encodings;
    if ((keywords && PyDict_GET_SIZE(keywords)) ||
        !PyArg_ParseTuple(args, "y#y#O!:Cipher", &key, &key_size, &header, &header_size,
                          &PyTuple_Type, &encodings))
        return -1;
    if (self->encodings || key_size != KEY_BYTES || header_size != HEADER_BYTES ||
        !PyTuple_GET_SIZE(encodings)) {
        PyErr_SetString(PyExc_ValueError, "once: a key of 32 bytes, a header of 37, encodings");
        return -1;
    }
    cipher_clear(self); /* of a first try that failed */
    self->seal = EVP_CIPHER_CTX_new();
    self->open = EVP_CIPHER_CTX_new();
    if (!self->seal || !self->open ||
        EVP_EncryptInit_ex(self->seal, EVP_aes_256_gcm(), NULL, (const unsigned char *)key, NULL) <= 0 ||
        EVP_DecryptInit_ex(self->open, EVP_aes_256_gcm(), NULL, (const unsigned char *)key, NULL) <= 0)
        cipher_clear(self); /* then the definitions do it all */
    else {
        memcpy(self->header, header, HEADER_BYTES);
        self->encodings = Py_NewRef(encodings);
    }
    ERR_clear_error();
    return 0;
}

static void cipher_dealloc(Cipher *self) {
    cipher_clear(self);
    Py_TYPE(self)->tp_free(self);
}

static PyTypeObject CipherType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "redislink._native.Cipher",
    .tp_basicsize = sizeof(Cipher),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)cipher_init,
    .tp_dealloc = (destructor)cipher_dealloc,
};
#endif

/* ---- leaves, and the module ------------------------------------------------------------------ */

static int is_used = 1;

/* A leaf is a built-in function whose __self__ is its definition. */
#define LEAF(twin)                                                                                 \
    static PyObject *twin##_leaf(PyObject *definition, Args args, Py_ssize_t count,                \
                                 PyObject *keywords) {                                             \
        PyObject *result = is_used && !keywords ? twin(args, count) : NULL;                        \
        if (result || PyErr_Occurred())                                                            \
            return result;                                                                         \
        return PyObject_Vectorcall(definition, args, (size_t)count, keywords);                     \
    }
#define ROW(twin) {#twin, (PyCFunction)(void (*)(void))twin##_leaf, METH_FASTCALL | METH_KEYWORDS, NULL}

LEAF(encode_tag)
LEAF(pack_push)
LEAF(pack_blpops)
LEAF(only_element)
#ifdef WITH_OPENSSL
LEAF(seal_whole)
LEAF(open_whole)
#endif

static PyMethodDef LEAVES[] = {
    ROW(encode_tag), ROW(pack_push), ROW(pack_blpops), ROW(only_element),
#ifdef WITH_OPENSSL
    ROW(seal_whole), ROW(open_whole),
#endif
    {NULL},
};

/* leaf(definition): the leaf of this name, or the definition itself if it has no twin here. */
static PyObject *leaf(PyObject *module, PyObject *definition) {
    (void)module;
    if (!PyFunction_Check(definition)) {
        PyErr_SetString(PyExc_TypeError, "a leaf is made from a function");
        return NULL;
    }
    PyObject *name = ((PyFunctionObject *)definition)->func_name;
    for (PyMethodDef *row = LEAVES; row->ml_name; row++)
        if (!PyUnicode_CompareWithASCIIString(name, row->ml_name))
            return PyCFunction_New(row, definition);
    return Py_NewRef(definition);
}

/* use(on): whether leaves use the twins from now on, or their definitions only. */
static PyObject *use(PyObject *module, PyObject *on) {
    (void)module;
    int truth = PyObject_IsTrue(on);
    if (truth < 0)
        return NULL;
    is_used = truth;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"leaf", leaf, METH_O, "Return the leaf of a definition, or the definition."},
    {"use", use, METH_O, "Set whether leaves use the twins."},
    {NULL},
};

static struct PyModuleDef native = {
    PyModuleDef_HEAD_INIT,
    .m_name = "redislink._native",
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&native);
    const char *openssl = "";
#ifdef WITH_OPENSSL
    openssl = OpenSSL_version(OPENSSL_VERSION);
    if (module && PyModule_AddType(module, &CipherType) < 0)
        Py_CLEAR(module);
#endif
    if (module && PyModule_AddStringConstant(module, "OPENSSL", openssl) < 0)
        Py_CLEAR(module);
    return module;
}
