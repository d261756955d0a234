/* Decodes a rectangle of a JPEG, to the pixels that decoding all of it and cutting the rectangle out would give.
 *
 * libjpeg-turbo must entropy-decode every block above and beside the rectangle, but the inverse transform, upsampling and
 * colour conversion are left out for those, and what lies below is not read at all. Two blocks beside the rectangle are
 * decoded too, because smooth chroma upsampling looks at neighbours.
 *
 * Optional: decode.py decodes whole pictures where this module was not built.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <jpeglib.h>

typedef struct {
    struct jpeg_error_mgr manager;
    jmp_buf out;
    char message[JMSG_LENGTH_MAX];
} Failure;

typedef struct {
    JDIMENSION left, top, width, height;
} Box;

static void fail(j_common_ptr info)
{
    Failure *failure = (Failure *)info->err;
    (*info->err->format_message)(info, failure->message);
    longjmp(failure->out, 1);
}

/* Level -1 is a warning of damaged data, which libjpeg papers over with grey; higher levels only trace. */
static void warn(j_common_ptr info, int level)
{
    if (level < 0)
        fail(info);
}

/* 0, or -1 with the reason in failure->message. Needs no Python, so it runs without the interpreter's lock. */
static int decode(const unsigned char *data, size_t size, Box box, unsigned char *out, Failure *failure)
{
    struct jpeg_decompress_struct info;
    memset(&info, 0, sizeof info); /* so that destroying what was never made is harmless */
    info.err = jpeg_std_error(&failure->manager);
    failure->manager.error_exit = fail;
    failure->manager.emit_message = warn;
    if (setjmp(failure->out)) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, (unsigned char *)data, (unsigned long)size);
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_RGB;
    info.dct_method = JDCT_ISLOW;
    jpeg_start_decompress(&info);
    /* What no scan completed is guessed from the neighbours, and not alike in all versions of the library. */
    for (int i = 0; info.coef_bits && i < info.num_components * 10; i++)
        if (info.coef_bits[i / 10][i % 10]) {
            strcpy(failure->message, "scans are missing");
            longjmp(failure->out, 1);
        }
    if (box.width < 1 || box.height < 1 || box.width > info.output_width || box.height > info.output_height ||
        box.left > info.output_width - box.width || box.top > info.output_height - box.height) {
        strcpy(failure->message, "the box is not inside the picture");
        longjmp(failure->out, 1);
    }
    const JDIMENSION margin = 2 * DCTSIZE * info.max_h_samp_factor;
    JDIMENSION first = box.left > margin ? box.left - margin : 0;
    JDIMENSION columns = box.left + box.width - first;
    columns = info.output_width - first - columns > margin ? columns + margin : info.output_width - first;
    if (columns < info.output_width)
        jpeg_crop_scanline(&info, &first, &columns); /* moves `first` left to the edge of a block */
    if (box.top)
        jpeg_skip_scanlines(&info, box.top);
    /* Not aligned on purpose: into aligned rows the colour conversion writes past the cache, and reading such a row back
       at once costs a fifth of the whole decoding. */
    JSAMPROW row = (JSAMPROW)(*info.mem->alloc_large)((j_common_ptr)&info, JPOOL_IMAGE, info.output_width * 3 + 4) + 4;
    const size_t bytes = (size_t)box.width * 3;
    for (JDIMENSION line = 0; line < box.height; line++) {
        if (jpeg_read_scanlines(&info, &row, 1) != 1) {
            strcpy(failure->message, "the data ends early");
            longjmp(failure->out, 1);
        }
        memcpy(out + line * bytes, row + (box.left - first) * 3, bytes);
    }
    if (info.output_scanline == info.output_height)
        jpeg_finish_decompress(&info); /* notices what is missing at the end */
    jpeg_destroy_decompress(&info);
    return 0;
}

static PyObject *crop(PyObject *module, PyObject *arguments)
{
    Py_buffer data, out;
    unsigned int left, top, width, height;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*IIIIw*", &data, &left, &top, &width, &height, &out))
        return NULL;
    Failure failure;
    int state = -1;
    strcpy(failure.message, "out has another size than the box");
    if ((size_t)out.len == (size_t)width * height * 3) {
        Box box = {left, top, width, height};
        Py_BEGIN_ALLOW_THREADS
        state = decode(data.buf, (size_t)data.len, box, out.buf, &failure);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (state) {
        PyErr_SetString(PyExc_ValueError, failure.message);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"crop", crop, METH_VARARGS,
     "crop(data, left, top, width, height, out)\n--\n\n"
     "Decodes a rectangle of a JPEG with one or three components to RGB.\n\n"
     "Args:\n"
     "    data: The bytes of the file.\n"
     "    left, top, width, height: The rectangle, in pixels of the stored picture.\n"
     "    out: Writable contiguous buffer of height * width * 3 bytes.\n\n"
     "Raises:\n"
     "    ValueError: The data is damaged as far as it was read, or the rectangle does not fit."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_jpeg", "Decodes rectangles of JPEGs.", 0, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void)
{
    return PyModule_Create(&definition);
}
