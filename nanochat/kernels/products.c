// Products of float32 matrices for processors with AVX2 and FMA, for the cases (products.py) in which torch's library (Intel's MKL)
// computes the half that is not needed, or is slower on another maker's processors. The blocks are those of Goto & van de Geijn, 2008
// (Anatomy of High-Performance Matrix Multiplication): the right matrix is packed once for all threads, a few rows of the left one by
// each thread for itself, and tiles of 6 x 16 are summed in registers. Threads take tasks dynamically, so that a thread delayed by other
// programs delays no other. The order of all sums depends on the shapes alone: equal results with any number of threads.
//
// products_float32.h, or with -DINT16 products_int16.h, packs and multiplies terms: WORDS, tile and pack.
// Strides are in elements. Compiled at the first start for this machine's processor (nanochat/kernels/build.py).

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t size;

int omp_get_max_threads(void), omp_get_thread_num(void), omp_in_parallel(void);

enum { WHOLE, SYMMETRIC, LOWER_RESULT, LOWER_LEFT, UPPER_LEFT }; // the half of a square matrix that is known, not needed, or zero

typedef struct { // x[row][column] is at x[row * down + column * right]
    const float *x;
    size down, right;
} matrix;

#define TALL 6          // rows of a tile: with its two columns of 8 they take 12 of 16 registers
#define WIDE 16         // columns of it
#define DEPTH 256       // terms of a sum packed at once: WIDE of them fill half of the L1 cache
#define TASK 16         // tile heights that a thread packs at once, a multiple of 4: a fifth of the L2 cache
#define GROUP 16        // tile widths packed by one thread
#define COLUMNS 256     // columns of the right matrix packed at once, at least
#define SHARED (1 << 20) // elements of it packed at once, if that is more
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define PARTS(n, of) (((n) + (of) - 1) / (of))

static matrix at(matrix m, size row, size column) {
    m.x += row * m.down + column * m.right;
    return m;
}

static matrix transposed(matrix m) { return (matrix){m.x, m.right, m.down}; }

typedef struct { // where a sum goes: c = alpha * sum + beta * old, rows `down` apart; old may be NULL
    float alpha, beta, *c;
    size c_down;
    const float *old;
    size old_down;
} target;

static inline void prefetch(const target *to) {
    for (int i = 0; i < TALL; i++) {
        const float *row = to->c + i * to->c_down;
        _mm_prefetch((const char *)row, _MM_HINT_T0);
        _mm_prefetch((const char *)(row + WIDE - 1), _MM_HINT_T0); // a second cache line, if the row is not aligned
    }
}

static inline void store(const target *to, size row, size column, __m256 sum) {
    sum = _mm256_mul_ps(_mm256_set1_ps(to->alpha), sum);
    if (to->old) sum = _mm256_fmadd_ps(_mm256_set1_ps(to->beta), _mm256_loadu_ps(to->old + row * to->old_down + column), sum);
    _mm256_storeu_ps(to->c + row * to->c_down + column, sum);
}

// Eight rows of eight become its columns.
static inline void transpose(__m256 rows[8]) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}

// Eight columns from `first` on of `height` rows with the stride `down`; zeros for missing rows.
static inline void columns_of(size height, size first, const float *x, size down, __m256 columns[8]) {
    for (size i = 0; i < 8; i++) columns[i] = first + i < height ? _mm256_loadu_ps(x + (first + i) * down) : _mm256_setzero_ps();
    transpose(columns);
}

#ifdef INT16
#include "products_int16.h"
#else
#include "products_float32.h"
#endif

// A tile's sum, with only the first `rows` and `columns` stored.
static void part_of_tile(size rows, size columns, size depth, const float *a, const float *b, const target *to) {
    float out[TALL * WIDE] __attribute__((aligned(32)));
    tile(depth, a, b, &(target){to->alpha, 0, out, WIDE, NULL, 0});
    for (size i = 0; i < rows; i++)
        for (size j = 0; j < columns; j++)
            to->c[i * to->c_down + j] = out[i * WIDE + j] + (to->old ? to->beta * to->old[i * to->old_down + j] : 0);
}

typedef struct { // c = alpha * a b + beta * old, for one pair of matrices
    int half;
    size m, n, k;
    float alpha, beta;
    matrix a, b, old; // old.x may be NULL
    float *c;
    size c_down;
    size rows, depth, columns, width; // rows and terms that a thread packs at once; columns that all threads pack, also with padding
    size ahead;                       // tasks until this thread's likely next one, whose rows are prefetched
} work;

// Pack `columns` columns of b from `first` on, all threads together: packed (k / depth, panels, words, WIDE).
static void pack_right(const work *w, size first, float *packed) {
    size wide = MIN(w->columns, w->n - first), groups = PARTS(wide, GROUP * WIDE);
#pragma omp for schedule(dynamic)
    for (size task = 0; task < groups * PARTS(w->k, w->depth); task++) {
        size p = task / groups * w->depth, j = task % groups * GROUP * WIDE, deep = MIN(w->depth, w->k - p);
        float *to = packed + p / w->depth * WORDS(w->depth) * w->width + j * WORDS(deep);
        pack(WIDE, MIN(GROUP * WIDE, wide - j), deep, transposed(at(w->b, p, first + j)), to);
    }
}

// Rows of c from `row` on, in the packed columns; `mine` is a buffer for as many rows of a.
static void multiply_rows(const work *w, size row, size first, const float *packed, float *mine) {
    size wide = MIN(w->columns, w->n - first), tall = MIN(w->rows, w->m - row);
    size low = w->half == UPPER_LEFT ? row : 0, high = w->half == LOWER_LEFT ? MIN(row + tall, w->k) : w->k;
    int lower = w->half == SYMMETRIC || w->half == LOWER_RESULT;
    float *c = w->c + row * w->c_down + first;
    matrix old = w->old.x ? at(w->old, row, first) : w->old;
    float beta = w->beta;
    for (size p = low / w->depth * w->depth; p < high; p += w->depth) {
        size begin = MAX(p, low), deep = MIN(p + w->depth, high) - begin, whole = MIN(w->depth, w->k - p);
        pack(TALL, tall, deep, at(w->a, row, begin), mine);
        size ahead = row + w->rows * w->ahead, lines = w->a.right == 1 && ahead + tall <= w->m ? PARTS(tall, PARTS(wide, WIDE)) : 0;
        for (size j = 0; j < wide; j += WIDE) {
            for (size r = j / WIDE * lines; r < MIN(tall, (j / WIDE + 1) * lines); r++)
                for (size q = 0; q < deep; q += 16) _mm_prefetch((const char *)at(w->a, ahead + r, begin + q).x, _MM_HINT_T1);
            const float *right = packed + p / w->depth * WORDS(w->depth) * w->width + j * WORDS(whole) + (begin - p) * WIDE;
            size top = lower && first + j > row ? (first + j - row) / TALL * TALL : 0; // tiles above have no element below the diagonal
            for (size i = top; i < tall; i += TALL) {
                const float *left = mine + i * WORDS(deep);
                target to = {w->alpha, beta, c + i * w->c_down + j, w->c_down, old.x ? at(old, i, j).x : NULL, old.down};
                if (i + TALL <= tall && j + WIDE <= wide) tile(deep, left, right, &to);
                else part_of_tile(MIN(TALL, tall - i), MIN(WIDE, wide - j), deep, left, right, &to);
            }
        }
        old = (matrix){c, w->c_down, 1}, beta = 1;
    }
}

// One pair, by all threads, or by one thread within a parallel region. Returns 1 if memory cannot be allocated.
static int multiply(work w) {
    size threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    w.rows = TALL * MIN(TASK, PARTS(PARTS(w.m, TALL), 16 * threads) * 4);
    w.depth = PARTS(w.k, PARTS(w.k, DEPTH));
    w.columns = MIN(w.n, MAX(SHARED / w.k, COLUMNS) / WIDE * WIDE);
    w.width = PARTS(w.columns, WIDE) * WIDE;
    w.ahead = threads;
    size shared = w.width * PARTS(w.k, w.depth) * WORDS(w.depth), own = w.rows * WORDS(w.depth);
    float *packed = aligned_alloc(64, PARTS(shared + threads * own, 16) * 64);
    if (!packed) return 1;
#pragma omp parallel num_threads(threads)
    {
        float *mine = packed + shared + omp_get_thread_num() * own;
        for (size first = 0; first < w.n; first += w.columns) {
            pack_right(&w, first, packed);
#pragma omp for schedule(dynamic)
            for (size row = 0; row < w.m; row += w.rows) multiply_rows(&w, row, first, packed, mine);
        }
        if (w.half == SYMMETRIC)
#pragma omp for schedule(static)
            for (size row = 0; row < w.m; row++)
                for (size j = row + 1; j < w.n; j++) w.c[row * w.c_down + j] = w.c[j * w.c_down + row];
    }
    free(packed);
    return 0;
}

// The `by`th pair after the first.
static work moved(work w, size by, size a_next, size b_next, size old_next, size c_next) {
    w.a.x += by * a_next;
    w.b.x += by * b_next;
    w.c += by * c_next;
    if (w.old.x) w.old.x += by * old_next;
    return w;
}

// c = alpha * a b + beta * old, for each of `count` matrices with the stride `next`: a (m, k) and b (k, n) with any strides, c and old
// (m, n) with rows `down` apart; old may be c, or NULL. If the product is SYMMETRIC, half of it is computed. A LOWER_RESULT is undefined
// above the diagonal. A LOWER_LEFT or UPPER_LEFT matrix leaves out half of the terms, except with INT16, where a block's scale is at its
// end. Returns 1 if memory cannot be allocated.
int product(int half, size count, size m, size n, size k, float alpha, const float *a, size a_next, size a_down, size a_right,
            const float *b, size b_next, size b_down, size b_right, float beta, const float *old, size old_next, size old_down, float *c,
            size c_next, size c_down) {
    work one = {half, m, n, k, alpha, beta, {a, a_down, a_right}, {b, b_down, b_right}, {old, old_down, 1}, c, c_down, 0, 0, 0, 0, 0};
    int failed = 0; // two loops: within a parallel region of one thread GCC's library makes new threads for each product
    if (count < 2 * omp_get_max_threads()) {
        for (size i = 0; i < count; i++) failed |= multiply(moved(one, i, a_next, b_next, old_next, c_next));
        return failed;
    }
#pragma omp parallel for schedule(dynamic) reduction(| : failed)
    for (size i = 0; i < count; i++) failed |= multiply(moved(one, i, a_next, b_next, old_next, c_next));
    return failed;
}
