// Products of float32 matrices for processors with AVX2 and FMA: those of which torch's library (Intel's MKL) computes twice as much as
// is wanted, or takes longer on another maker's processors (products.py). The blocks are those of Goto & van de Geijn, 2008 (Anatomy of
// High-Performance Matrix Multiplication): the right matrix is packed once for all threads, a few rows of the left one by each thread for
// itself, and tiles of 6 x 16 are summed in registers. Threads take tasks as they get free, so that one which is held up by other work
// holds up no other. What is summed, and in which order, depends on the shapes alone: equal results with any number of threads.
//
// With -DINT16 what is multiplied are 16-bit integers, two in the place of a float32: block floating point (Drumond et al., 2018, Training
// DNNs with Hybrid Block Floating Point). DEPTH terms of a row, or of a column, have one scale, such that their norm is ROOT: no sum of
// products leaves 32 bits (Cauchy-Schwarz), and what is rounded away is 1e-4 of the norm, a tenth of what bfloat16 loses.
//
// Strides are in elements. Compiled at the first start for this machine's processor (nanochat/kernels/build.py).

#include <immintrin.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t size;

int omp_get_max_threads(void), omp_get_thread_num(void), omp_in_parallel(void);

enum { WHOLE, SYMMETRIC, LOWER_RESULT, LOWER_LEFT, UPPER_LEFT }; // which half of a square matrix is known, not wanted, or zero

typedef struct { // x[row][column] is at x[row * down + column * right]
    const float *x;
    size down, right;
} matrix;

#define TALL 6          // rows of a tile: with its two columns of 8 they take 12 of 16 registers
#define WIDE 16         // columns of it
#define DEPTH 256       // terms of a sum that are packed at once: WIDE of them fill half of the first cache
#define TASK 16         // tiles' heights that a thread packs at once, a multiple of 4: a fifth of the second cache
#define GROUP 16        // tiles' widths that are packed by one thread
#define LINES 16        // terms of rows that lie far apart which are copied at once
#define COLUMNS 256     // of the right matrix that are packed at once at least
#define SHARED (1 << 20) // elements of it, if these are more
#ifdef INT16
#define WORDS(depth) (PARTS(depth, 2) + 1) // of 32 bits that pack `depth` terms of a row: pairs, and its scale
#define ROOT 46000.0f                      // its square fits in 32 bits, with room for what is rounded up
#else
#define WORDS(depth) (depth)
#endif
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
        _mm_prefetch((const char *)(row + WIDE - 1), _MM_HINT_T0); // another line, where rows begin anywhere
    }
}

static inline void store(const target *to, size row, size column, __m256 sum) {
    sum = _mm256_mul_ps(_mm256_set1_ps(to->alpha), sum);
    if (to->old) sum = _mm256_fmadd_ps(_mm256_set1_ps(to->beta), _mm256_loadu_ps(to->old + row * to->old_down + column), sum);
    _mm256_storeu_ps(to->c + row * to->c_down + column, sum);
}

#ifdef INT16
// Of a row of a tile: its pair of terms with two times eight columns' pairs, added to two times eight sums.
#define ADD(i)                                                          \
    "vpbroadcastd 4*" #i "(%[a]), %%ymm2\n\t"                           \
    "vpmaddwd %%ymm0, %%ymm2, %%ymm3\n\t"                               \
    "vpmaddwd %%ymm1, %%ymm2, %%ymm2\n\t"                               \
    "vpaddd %%ymm3, %[left" #i "], %[left" #i "]\n\t"                   \
    "vpaddd %%ymm2, %[right" #i "], %[right" #i "]\n\t"
#define SUMS(i) [left##i] "+x"(sums[i][0]), [right##i] "+x"(sums[i][1])

// A sum over packed a (words, TALL) and b (words, WIDE), whose last words are the scales. GCC would have the sums wait in memory.
static __attribute__((noinline)) void tile(size depth, const float *a, const float *b, const target *to) {
    __m256i sums[TALL][2] = {0};
    size pairs = PARTS(depth, 2);
    prefetch(to);
    __asm__ volatile("1:\n\t"
                     "vmovdqa (%[b]), %%ymm0\n\t"
                     "vmovdqa 32(%[b]), %%ymm1\n\t" ADD(0) ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) "add $24, %[a]\n\t"
                     "add $64, %[b]\n\t"
                     "dec %[pairs]\n\t"
                     "jnz 1b"
                     : [a] "+r"(a), [b] "+r"(b), [pairs] "+r"(pairs), SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5)
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "memory", "cc");
    __m256 left = _mm256_load_ps(b), right = _mm256_load_ps(b + 8);
#pragma GCC unroll 6
    for (int i = 0; i < TALL; i++) {
        __m256 scale = _mm256_set1_ps(a[i]);
        store(to, i, 0, _mm256_mul_ps(_mm256_mul_ps(scale, left), _mm256_cvtepi32_ps(sums[i][0])));
        store(to, i, 8, _mm256_mul_ps(_mm256_mul_ps(scale, right), _mm256_cvtepi32_ps(sums[i][1])));
    }
}
#else
// A sum over packed a (depth, TALL) and b (depth, WIDE). No part of another function: what the loop does not need waits in memory, not in
// the registers that it fills.
static __attribute__((noinline)) void tile(size depth, const float *a, const float *b, const target *to) {
    __m256 sums[TALL][2];
    for (int i = 0; i < TALL; i++) sums[i][0] = sums[i][1] = _mm256_setzero_ps();
    prefetch(to);
    for (size p = 0; p < depth; p++) {
        __m256 left = _mm256_load_ps(b + p * WIDE), right = _mm256_load_ps(b + p * WIDE + 8);
#pragma GCC unroll 6
        for (int i = 0; i < TALL; i++) {
            __m256 x = _mm256_broadcast_ss(a + p * TALL + i);
            sums[i][0] = _mm256_fmadd_ps(x, left, sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(x, right, sums[i][1]);
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < TALL; i++) {
        store(to, i, 0, sums[i][0]);
        store(to, i, 8, sums[i][1]);
    }
}
#endif

// The same for the first `rows` and `columns` of a tile.
static void part_of_tile(size rows, size columns, size depth, const float *a, const float *b, const target *to) {
    float out[TALL * WIDE] __attribute__((aligned(32)));
    tile(depth, a, b, &(target){to->alpha, 0, out, WIDE, NULL, 0});
    for (size i = 0; i < rows; i++)
        for (size j = 0; j < columns; j++)
            to->c[i * to->c_down + j] = out[i * WIDE + j] + (to->old ? to->beta * to->old[i * to->old_down + j] : 0);
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

// Eight columns from `first` on of `height` rows that lie `down` apart: the rows that there are, and zeros.
static inline void columns_of(size height, size first, const float *x, size down, __m256 columns[8]) {
    for (size i = 0; i < 8; i++) columns[i] = first + i < height ? _mm256_loadu_ps(x + (first + i) * down) : _mm256_setzero_ps();
    transpose(columns);
}

#ifdef INT16
// A row's terms as integers, and its scale: x (depth) -> out (DEPTH), zeros at the end.
static inline float quantize(size depth, const float *x, int16_t *out) {
    __m256 squares = _mm256_setzero_ps(), highest = squares, sign = _mm256_set1_ps(-0.0f);
    float sum = 0, high = 0;
    size p = 0;
    for (; p + 8 <= depth; p += 8) {
        __m256 v = _mm256_loadu_ps(x + p);
        squares = _mm256_fmadd_ps(v, v, squares);
        highest = _mm256_max_ps(_mm256_andnot_ps(sign, v), highest);
    }
    for (int i = 0; i < 8; i++) sum += squares[i], high = MAX(high, highest[i]);
    for (; p < depth; p++) sum += x[p] * x[p], high = MAX(high, fabsf(x[p]));
    float scale = sum < 1e-32f ? 0 : MAX(sqrtf(sum) / ROOT, high / 32767); // of less the squares are no longer exact
    float inverse = scale ? 1 / scale : 0;
    __m256 by = _mm256_set1_ps(inverse);
    for (p = 0; p + 16 <= depth; p += 16) {
        __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(by, _mm256_loadu_ps(x + p)));
        __m256i up = _mm256_cvtps_epi32(_mm256_mul_ps(by, _mm256_loadu_ps(x + p + 8)));
        _mm256_store_si256((__m256i *)(out + p), _mm256_permute4x64_epi64(_mm256_packs_epi32(low, up), 0xd8));
    }
    for (; p < DEPTH; p++) out[p] = p < depth ? (int16_t)lrintf(x[p] * inverse) : 0;
    return isfinite(sum) ? scale : NAN; // what is not finite must not get lost
}

#define CHUNK 48 // rows that are read side by side where they lie next to one another: three panels of WIDE, eight of TALL
#define APART (DEPTH + 8) // of their terms: rows of a power of two would share a cache's lines

// Terms of `rows` <= CHUNK rows of x, a row after the other: out (rows, APART).
static void gather(size rows, size depth, matrix x, float *out) {
    size p = 0, eights = x.down == 1 ? rows / 8 * 8 : 0;
    for (; p + 8 <= depth; p += 8)
        for (size row = 0; row < eights; row += 8) {
            __m256 block[8];
            columns_of(8, 0, at(x, row, p).x, x.right, block);
            for (size i = 0; i < 8; i++) _mm256_storeu_ps(out + (row + i) * APART + p, block[i]);
        }
    for (size row = 0; row < rows; row++)
        for (size q = row < eights ? p : 0; q < depth; q++) out[row * APART + q] = *at(x, row, q).x;
}

// Pack x (rows, depth) in panels of `height` rows, the last one filled with zeros: out (panels, words, height).
static inline __attribute__((always_inline)) void pack(const size height, size rows, size depth, matrix x, float *out) {
    float gathered[CHUNK * APART];
    int16_t integers[WIDE][DEPTH] __attribute__((aligned(32)));
    size pairs = PARTS(depth, 2);
    for (size row = 0; row < rows; row += height, out += WORDS(depth) * height) {
        size there = MIN(height, rows - row);
        matrix terms = at(x, row, 0);
        if (x.right != 1) {
            if (row % CHUNK == 0) gather(MIN(CHUNK, rows - row), depth, terms, gathered);
            terms = (matrix){gathered + row % CHUNK * APART, APART, 1};
        }
        for (size i = 0; i < height; i++)
            if (i < there) out[pairs * height + i] = quantize(depth, at(terms, i, 0).x, integers[i]);
            else out[pairs * height + i] = 0, memset(integers[i], 0, sizeof integers[i]);
        size p = 0;
        for (; p + 8 < pairs; p += 8) // the last ones go one by one: the eighth row reaches over the end of a panel of six
            for (size first = 0; first < height; first += 8) {
                __m256 block[8];
                columns_of(height, first, (const float *)integers + p, DEPTH / 2, block);
                for (size i = 0; i < 8; i++) _mm256_storeu_ps(out + (p + i) * height + first, block[i]);
            }
        for (; p < pairs; p++)
            for (size i = 0; i < height; i++) memcpy(out + p * height + i, &integers[i][2 * p], sizeof *out);
    }
}
#else
// Pack x (rows, depth) in panels of `height` rows, the last one filled with zeros: out (panels, depth, height).
static inline __attribute__((always_inline)) void pack(const size height, size rows, size depth, matrix x, float *out) {
    size whole = rows / height * height;
    if (x.down == 1) { // a panel after the other would come back to each cache line from afar
        for (size p = 0; p < depth; p += LINES)
            for (size row = 0; row < whole; row += height)
                for (size q = p; q < MIN(p + LINES, depth); q++)
                    memcpy(out + row * depth + q * height, at(x, row, q).x, height * sizeof *out);
    } else {
        for (size row = 0; row < whole; row += height) {
            float *to = out + row * depth;
            size p = 0;
            if (x.right == 1)
                for (; p + 8 < depth; p += 8) // the last terms go one by one: the eighth row reaches over the end of a panel of six
                    for (size first = 0; first < height; first += 8) {
                        __m256 block[8];
                        columns_of(height, first, at(x, row, p).x, x.down, block);
                        for (size i = 0; i < 8; i++) _mm256_storeu_ps(to + (p + i) * height + first, block[i]);
                    }
            for (; p < depth; p++)
                for (size i = 0; i < height; i++) to[p * height + i] = *at(x, row + i, p).x;
        }
    }
    if (whole < rows)
        for (size p = 0; p < depth; p++)
            for (size i = 0; i < height; i++) out[whole * depth + p * height + i] = whole + i < rows ? *at(x, whole + i, p).x : 0;
}
#endif

typedef struct { // c = alpha * a b + beta * old, for one pair of matrices
    int half;
    size m, n, k;
    float alpha, beta;
    matrix a, b, old; // old.x may be NULL
    float *c;
    size c_down;
    size rows, depth, columns, width; // rows and terms that a thread packs at once; columns that all do, and with zeros
    size ahead;                       // tasks until this thread's next one, most likely: its rows are fetched meanwhile
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

// Rows of c from `row` on, in the columns that are packed; `mine` has room for as many rows of a.
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
            size top = lower && first + j > row ? (first + j - row) / TALL * TALL : 0; // what is above has nothing below the diagonal
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

// One pair, by all threads, or by the one that is within a parallel region already. Returns 1 where there is no memory.
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

// The `by`th pair, counted from one that is the first.
static work moved(work w, size by, size a_next, size b_next, size old_next, size c_next) {
    w.a.x += by * a_next;
    w.b.x += by * b_next;
    w.c += by * c_next;
    if (w.old.x) w.old.x += by * old_next;
    return w;
}

// c = alpha * a b + beta * old, for each of `count` matrices that lie `next` apart: a (m, k) and b (k, n) with any strides, c and old
// (m, n) with rows `down` apart; old may be c, or NULL. Where the product is SYMMETRIC half of it is computed, for a LOWER_RESULT what
// lies above the diagonal is left undefined, and of a left matrix that is LOWER or UPPER half of the terms are left out, which INT16
// cannot: a block's scale lies at its end. Returns 1 where there is no memory.
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
