// Terms as 16-bit integers, two in a word: block floating point (Drumond et al., 2018, Training DNNs with Hybrid Block
// Floating Point). DEPTH terms of a row, or of a column, have one scale, such that their norm is ROOT: no sum of products leaves 32 bits
// (Cauchy-Schwarz), and the rounding error is 1e-4 of the norm, a tenth of bfloat16's. Part of products.c.

#define WORDS(depth) (PARTS(depth, 2) + 1) // 32-bit words that pack `depth` terms of a row: pairs, and its scale
#define ROOT 46000.0f                      // its square fits in 32 bits, with a margin for rounding up

// Of a row of a tile: its pair of terms with two times eight columns' pairs, added to two times eight sums.
#define ADD(i)                                                          \
    "vpbroadcastd 4*" #i "(%[a]), %%ymm2\n\t"                           \
    "vpmaddwd %%ymm0, %%ymm2, %%ymm3\n\t"                               \
    "vpmaddwd %%ymm1, %%ymm2, %%ymm2\n\t"                               \
    "vpaddd %%ymm3, %[left" #i "], %[left" #i "]\n\t"                   \
    "vpaddd %%ymm2, %[right" #i "], %[right" #i "]\n\t"
#define SUMS(i) [left##i] "+x"(sums[i][0]), [right##i] "+x"(sums[i][1])

// A sum over packed a (words, TALL) and b (words, WIDE), whose last words are the scales. In assembly, because GCC spills the sums.
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
    return isfinite(sum) ? scale : NAN; // NaN and Inf must propagate
}

#define CHUNK 48 // rows read together if they are adjacent in memory: three panels of WIDE, eight of TALL
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
