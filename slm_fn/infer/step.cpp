// One decoding step of a decoder on a CPU: all layers and the head for a few rows, in one call. A row is one token;
// consecutive rows may belong to the same sequence, to verify draft tokens.
//
// The sums of a row are computed in one order, whatever the number of rows and threads, so its result is the same bit
// for bit. Weights are read in their own format: float32, bfloat16, INT8 or INT4. Everything else is float32, except
// the inputs of a bfloat16 model's matrices: bfloat16, where the processor has products of pairs.

#include <omp.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <thread>
#include <vector>

typedef float V __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint32_t U32 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef int8_t I8 __attribute__((vector_size(16)));
typedef uint8_t U8 __attribute__((vector_size(16)));
constexpr int W = 16;  // lanes

enum Kind { F32, BF16, INT8, INT4 };

struct Matrix {  // (L, outputs, inputs), stacked
  const uint8_t* data;
  const float* scale;
  const float* zero;
  int64_t kind, group, outputs, inputs;
};

struct Model {
  int64_t layers, dim, heads, kv_heads, channels, hidden, activation, layer_norm, window, cache_kind;
  double eps, scale, softcap;
  Matrix q, k, v, o, gate, up, down, head;
  const float *attn_norm, *attn_norm_bias, *ffn_norm, *ffn_norm_bias, *norm, *norm_bias;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias, *q_norm, *k_norm, *slopes;
};

struct Call {
  int64_t rows, rows_per_sequence, threads, stride_layer, stride_sequence, stride_position;
  float* x;              // (rows, dim): the embedded tokens; after the call, the input of the head
  const float *cos, *sin;  // (rows, channels / 2), or null
  const int64_t* lengths;  // (rows): the tokens before a row in its sequence
  uint8_t *k, *v;
  float* logits;  // (rows, outputs of the head), or null
};

template <class T>
static inline T load(const void* at) {
  T out;
  std::memcpy(&out, at, sizeof(T));
  return out;
}
static inline void store(float* at, V x) { std::memcpy(at, &x, sizeof(V)); }

// Compilers convert `__builtin_convertvector` one number at a time here, so x86 gets the instruction itself.
#if defined(__AVX512F__)
static inline I32 widen8(I8 x) { return (I32)_mm512_cvtepi8_epi32((__m128i)x); }
static inline I32 widen8(U8 x) { return (I32)_mm512_cvtepu8_epi32((__m128i)x); }
static inline V wide(U16 x) { return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16); }
#else
static inline I32 widen8(I8 x) { return __builtin_convertvector(x, I32); }
static inline I32 widen8(U8 x) { return __builtin_convertvector(x, I32); }
static inline V wide(U16 x) { return (V)(__builtin_convertvector(x, U32) << 16); }
#endif

// Sums over the lanes of several vectors at once: each fold halves the number of partial sums of every vector and joins
// two vectors. A sum has the same order of additions whether it is computed alone or with others.
#define PICK __builtin_shufflevector
static inline V fold8(V a, V b) {
  return PICK(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         PICK(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
static inline V fold4(V a, V b) {
  return PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
static inline V fold2(V a, V b) {
  return PICK(a, b, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         PICK(a, b, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
static inline V fold1(V a, V b) {
  return PICK(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         PICK(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
static inline V join(V a, V b, V c, V d) { return fold4(fold8(a, b), fold8(c, d)); }
static inline V totals(V a, V b, V c, V d) {  // in lanes 0 to 3
  V four = join(a, b, c, d);
  four = fold2(four, four);
  return fold1(four, four);
}
static inline float total(V x) { return totals(x, x, x, x)[0]; }

struct ReadF32 {
  static constexpr int per_line = 1;  // vectors in a cache line
  static int64_t size(int64_t n) { return 4 * n; }
  const float* at;
  ReadF32(const Matrix& m, int64_t row) : at((const float*)m.data + row * m.inputs) {}
  V operator()(int64_t i) const { return load<V>(at + i); }
};
struct ReadBF16 {
  static constexpr int per_line = 2;
  static int64_t size(int64_t n) { return 2 * n; }
  const uint16_t* at;
  ReadBF16(const Matrix& m, int64_t row) : at((const uint16_t*)m.data + row * m.inputs) {}
  V operator()(int64_t i) const { return wide(load<U16>(at + i)); }
};
struct ReadInt8 {
  static constexpr int per_line = 4;
  static int64_t size(int64_t n) { return n; }
  const int8_t* at;
  ReadInt8(const Matrix& m, int64_t row) : at((const int8_t*)m.data + row * m.inputs) {}
  V operator()(int64_t i) const { return __builtin_convertvector(widen8(load<I8>(at + i)), V); }
};
struct ReadInt4 {  // a group's first half is in the low four bits of its bytes
  static constexpr int per_line = 8;
  static int64_t size(int64_t n) { return n / 2; }
  const uint8_t* at;
  const float *scale, *zero;
  int64_t half;
  int shift;
  ReadInt4(const Matrix& m, int64_t row)
      : at(m.data + row * m.inputs / 2), half(m.group / 2), shift(__builtin_ctzll(m.group)) {  // groups are powers of two
    scale = m.scale + row * (m.inputs >> shift);
    zero = m.zero + row * (m.inputs >> shift);
  }
  V operator()(int64_t i) const {
    const int64_t g = i >> shift;
    const I32 both = widen8(load<U8>(at + g * half + (i & (half - 1))));
    const I32 n = ((both >> (i & half ? 4 : 0)) & 15) - 8;
    return __builtin_convertvector(n, V) * scale[g] + zero[g];
  }
};

// The product of weights and inputs: one vector of float32 at a time, or two of bfloat16.
struct Singles {
  typedef float X;
  typedef V Lanes;
  static constexpr int64_t step = W;
  template <class Read>
  static V weights(const Read& read, int64_t i) {
    return read(i);
  }
  static V add(V sum, V w, V x) { return sum + w * x; }
};
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
constexpr bool PAIRS = true;
struct Pairs {
  typedef uint16_t X;
  typedef __m512bh Lanes;
  static constexpr int64_t step = 2 * W;
  template <class Read>
  static Lanes weights(const Read& read, int64_t i) {
    return (__m512bh)_mm512_cvtne2ps_pbh((__m512)read(i + W), (__m512)read(i));
  }
  static Lanes weights(const ReadBF16& read, int64_t i) { return load<Lanes>(read.at + i); }
  // The values of the 16 possible numbers of a group form a table of one vector, in which the numbers are looked up.
  [[gnu::always_inline]] static Lanes weights(const ReadInt4& read, int64_t i) {
    const V numbers = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
    const int64_t g = i >> read.shift;
    const __m256i sixteen = (__m256i)_mm512_cvtneps_pbh((__m512)(numbers * read.scale[g] + read.zero[g]));
    const uint8_t* at = read.at + g * read.half + (i & (read.half - 1));
    __m512i which;  // only the lowest five bits are used; the table has every value twice
    if (read.half < step) {
      const __m256i both = _mm256_cvtepu8_epi16(load<__m128i>(at));
      which = _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
    } else {
      which = _mm512_srli_epi16(_mm512_cvtepu8_epi16(load<__m256i>(at)), i & read.half ? 4 : 0);
    }
    return (Lanes)_mm512_permutexvar_epi16(which, _mm512_broadcast_i64x4(sixteen));
  }
  static V add(V sum, Lanes w, Lanes x) { return (V)_mm512_dpbf16_ps((__m512)sum, w, x); }
};
#else
constexpr bool PAIRS = false;
#endif

struct Inputs {  // (rows, inputs)
  const float* wide;
  const uint16_t* half;  // the same, or null
};

constexpr int64_t AHEAD = 10240;  // bytes to prefetch: what is read during the latency of memory

// y[r][o] = x[r] . weight[o] for N outputs and R rows.
template <class Math, class Read, int N, int R>
static inline void tile(const Matrix& m, int64_t first, int64_t o, const typename Math::X* x, float* y) {
  V sums[R * N] = {};  // the sums of one row are adjacent
  const Read read[4] = {{m, first + o}, {m, first + o + (N > 1)}, {m, first + o + 2 * (N > 2)}, {m, first + o + 3 * (N > 3)}};
  for (int64_t i = 0; i < m.inputs; i += Math::step) {
    typename Math::Lanes xs[R];
    for (int r = 0; r < R; r++) xs[r] = load<typename Math::Lanes>(x + r * m.inputs + i);
    for (int n = 0; n < N; n++) {
      const auto w = Math::weights(read[n], i);
      if (i % (W * Read::per_line) == 0) __builtin_prefetch((const uint8_t*)read[n].at + Read::size(i) + AHEAD);
      for (int r = 0; r < R; r++) sums[r * N + n] = Math::add(sums[r * N + n], w, xs[r]);
    }
  }
  const auto store_sums = [&](int r, V lanes) {  // the first N lanes
    if (m.kind == INT8)
      for (int n = 0; n < N; n++) lanes[n] *= m.scale[first + o + n];
    std::memcpy(y + r * m.outputs + o, &lanes, N * sizeof(float));
  };
  if constexpr (N == 2 && R == 8) {
    const V left = fold2(join(sums[0], sums[1], sums[2], sums[3]), join(sums[4], sums[5], sums[6], sums[7]));
    const V right = fold2(join(sums[8], sums[9], sums[10], sums[11]), join(sums[12], sums[13], sums[14], sums[15]));
    V all = fold1(left, right);
    if (m.kind == INT8) {
      const float a = m.scale[first + o], b = m.scale[first + o + 1];
      all *= V{a, b, a, b, a, b, a, b, a, b, a, b, a, b, a, b};
    }
    for (int r = 0; r < R; r++) std::memcpy(y + r * m.outputs + o, (float*)&all + 2 * r, 2 * sizeof(float));
  } else {
#pragma GCC unroll 4  // otherwise the sums would be in memory, not in registers
    for (int r = 0; r < R; r++)
      store_sums(r, totals(sums[r * N], sums[r * N + (N > 1)], sums[r * N + 2 * (N > 2)], sums[r * N + 3 * (N > 3)]));
  }
}

template <class Math, class Read, int N>
static inline void strip(const Matrix& m, int64_t first, int64_t o, int64_t rows, const typename Math::X* x, float* y) {
  int64_t r = 0;
  if constexpr (N == 4)  // weights are widened once for eight rows
    for (; r + 8 <= rows; r += 8)
      for (int half = 0; half < 4; half += 2)
        tile<Math, Read, 2, 8>(m, first, o + half, x + r * m.inputs, y + r * m.outputs);
  for (; r + 4 <= rows; r += 4) tile<Math, Read, N, 4>(m, first, o, x + r * m.inputs, y + r * m.outputs);
  for (; r + 2 <= rows; r += 2) tile<Math, Read, N, 2>(m, first, o, x + r * m.inputs, y + r * m.outputs);
  for (; r < rows; r++) tile<Math, Read, N, 1>(m, first, o, x + r * m.inputs, y + r * m.outputs);
}

struct Range {
  int64_t begin, end;
};
// Multiples of vectors, so that the numbers computed one by one do not depend on which thread computes them.
constexpr int64_t BLOCK = 4 * W;
static int64_t num_blocks(int64_t count) { return (count + BLOCK - 1) / BLOCK; }
static Range block(int64_t count, int64_t i) { return {i * BLOCK, std::min(count, (i + 1) * BLOCK)}; }

// Each thread takes the consecutive blocks of its own range of a stage, then the remaining blocks of other ranges, and
// continues when all are done. No thread waits for one that has no block: where other programs use processor time, a
// barrier would cost a time slice at every stage.
struct alignas(64) Progress {
  std::atomic<int64_t> taken{0}, done{0};
};
struct Stages {
  Progress* progress;  // one per thread and stage
  int64_t threads, me;

  template <class Work>
  void run(int64_t num, Work work) {
    for (int64_t t = 0; t < threads; t++) {
      const int64_t owner = (me + t) % threads, end = num * (owner + 1) / threads;
      for (int64_t i; (i = num * owner / threads + progress[owner].taken.fetch_add(1, std::memory_order_relaxed)) < end;) {
        work(i);
        progress->done.fetch_add(1, std::memory_order_release);
      }
    }
    for (int64_t spins = 0; progress->done.load(std::memory_order_acquire) < num; spins++)
      if (spins > 2000) std::this_thread::yield();
    progress += threads;
  }
};

template <class Math, class Read>
static void strips(const Matrix& m, int64_t layer, int64_t rows, const typename Math::X* x, float* y, Range s) {
  const int64_t first = layer * m.outputs, end = s.end;
  int64_t o = s.begin;
  for (; o + 4 <= end; o += 4) strip<Math, Read, 4>(m, first, o, rows, x, y);
  for (; o < end; o++) strip<Math, Read, 1>(m, first, o, rows, x, y);
}

template <class Read>
static void multiply(const Matrix& m, int64_t layer, int64_t rows, Inputs x, float* y, Range s) {
#if defined(__AVX512BF16__)
  if (x.half && m.inputs % Pairs::step == 0) return strips<Pairs, Read>(m, layer, rows, x.half, y, s);
#endif
  strips<Singles, Read>(m, layer, rows, x.wide, y, s);
}

// Some outputs of x @ weight.T + bias; x (rows, inputs), y (rows, outputs).
static void linear(const Matrix& m, int64_t layer, int64_t rows, Inputs x, float* y, const float* bias, Range s) {
  if (m.kind == F32) multiply<ReadF32>(m, layer, rows, x, y, s);
  if (m.kind == BF16) multiply<ReadBF16>(m, layer, rows, x, y, s);
  if (m.kind == INT8) multiply<ReadInt8>(m, layer, rows, x, y, s);
  if (m.kind == INT4) multiply<ReadInt4>(m, layer, rows, x, y, s);
  if (bias)
    for (int64_t r = 0; r < rows; r++)
      for (int64_t o = s.begin; o < s.end; o++) y[r * m.outputs + o] += bias[layer * m.outputs + o];
}

static void norm(const float* x, float* y, int64_t n, const float* gain, const float* bias, bool centred, float eps) {
  float mean = 0, square = 0;
  if (centred) {
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= n;
  }
  if (n % W == 0) {
    V sums = {};
    for (int64_t i = 0; i < n; i += W) {
      const V d = load<V>(x + i) - mean;
      sums += d * d;
    }
    square = total(sums);
  } else {
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean) * (x[i] - mean);
  }
  const float inverse = 1 / std::sqrt(square / n + eps);
  for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * inverse * gain[i] + (bias ? bias[i] : 0.f);
}

static inline V exponential(V x) {  // to 2 units in the last place; below -87 it is about 1e-38
  x = x < -87.f ? V{} - 87.f : x;
  x = x > 88.f ? V{} + 88.f : x;
  const V n = (x * 1.44269504f + 12582912.f) - 12582912.f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = V{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
  return (p * r * r + r + 1.f) * (V)((__builtin_convertvector(n, I32) + 127) << 23);
}

enum Activation { SILU, GELU, RELU2 };
static void activate(int64_t kind, float* x, int64_t n) {
  int64_t i = 0;
  if (kind == SILU)
    for (; i + W <= n; i += W) {
      const V v = load<V>(x + i);
      store(x + i, v / (1.f + exponential(-v)));
    }
  for (; i < n; i++) {
    if (kind == SILU) x[i] = x[i] / (1 + std::exp(-x[i]));
    if (kind == GELU) x[i] = x[i] * 0.5f * (1 + std::erf(x[i] * 0.70710678f));
    if (kind == RELU2) x[i] = x[i] > 0 ? x[i] * x[i] : 0;
  }
}

static void rotate(float* x, int64_t channels, const float* cos, const float* sin) {
  for (int64_t i = 0, half = channels / 2; i < half; i++) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

static inline float widen(uint16_t x) {
  const uint32_t bits = (uint32_t)x << 16;
  return load<float>(&bits);
}
static inline uint16_t narrow(float x) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

struct CacheF32 {
  typedef float T;
  static V many(const T* at) { return load<V>(at); }
  static float one(T x) { return x; }
  static T of(float x) { return x; }
};
struct CacheBF16 {
  typedef uint16_t T;
  static V many(const T* at) { return wide(load<U16>(at)); }
  static float one(T x) { return widen(x); }
  static T of(float x) { return narrow(x); }
};

template <class T>
static T* cache_at(const Model& m, const Call& c, uint8_t* cache, int64_t layer, int64_t row, int64_t kv) {
  return (T*)cache + layer * c.stride_layer + row / c.rows_per_sequence * c.stride_sequence + kv * m.channels;
}

// Normalizes and rotates one head of a query or key.
static void normalize_and_rotate(const Model& m, const Call& c, int64_t layer, int64_t row, const float* gain, float* x) {
  const int64_t C = m.channels;
  if (gain) norm(x, x, C, gain + layer * C, nullptr, false, m.eps);
  if (c.cos) rotate(x, C, c.cos + row * C / 2, c.sin + row * C / 2);
}

// Writes one row's new key and value of one head into the cache of its sequence.
template <class Cache>
static void write_cache(const Model& m, const Call& c, int64_t layer, int64_t row, int64_t kv, float* k, const float* v) {
  typedef typename Cache::T T;
  normalize_and_rotate(m, c, layer, row, m.k_norm, k);
  T* keys = cache_at<T>(m, c, c.k, layer, row, kv) + c.lengths[row] * c.stride_position;
  T* values = cache_at<T>(m, c, c.v, layer, row, kv) + c.lengths[row] * c.stride_position;
  for (int64_t i = 0; i < m.channels; i++) keys[i] = Cache::of(k[i]), values[i] = Cache::of(v[i]);
}

// One query head of one row, over the positions up to and including the row's own.
template <class Cache>
static void attend(const Model& m, const Call& c, int64_t layer, int64_t row, int64_t head, float* q, float* y,
                   float* scores) {
  typedef typename Cache::T T;
  const int64_t C = m.channels, kv = head / (m.heads / m.kv_heads), length = c.lengths[row];
  const int64_t from = m.window ? std::max<int64_t>(0, length - m.window + 1) : 0, num = length - from + 1;
  normalize_and_rotate(m, c, layer, row, m.q_norm, q);
  for (int64_t i = 0; i < C; i++) q[i] *= (float)m.scale;
  const T* keys = cache_at<T>(m, c, c.k, layer, row, kv) + from * c.stride_position;
  const T* values = cache_at<T>(m, c, c.v, layer, row, kv) + from * c.stride_position;
  float largest = -INFINITY;
  for (int64_t p = 0; p < num; p++) {
    const T* at = keys + p * c.stride_position;
    float s = 0;
    if (C % W == 0) {
      V sums = {};
      for (int64_t i = 0; i < C; i += W) sums += Cache::many(at + i) * load<V>(q + i);
      s = total(sums);
    } else {
      for (int64_t i = 0; i < C; i++) s += Cache::one(at[i]) * q[i];
    }
    if (m.softcap) s = (float)m.softcap * std::tanh(s / (float)m.softcap);
    if (m.slopes) s -= m.slopes[head] * (float)(num - 1 - p);
    scores[p] = s;
    largest = std::max(largest, s);
  }
  for (int64_t p = num; p % W; p++) scores[p] = -INFINITY;
  V sums = {};
  for (int64_t p = 0; p < num; p += W) {
    V e = exponential(load<V>(scores + p) - largest);
    for (int64_t i = num - p; i < W; i++) e[i] = 0;
    store(scores + p, e);
    sums += e;
  }
  const float inverse = 1 / total(sums);
  std::fill(y, y + C, 0.f);
  for (int64_t p = 0; p < num; p++) {
    const T* at = values + p * c.stride_position;
    const float s = scores[p] * inverse;
    int64_t i = 0;
    for (; i + W <= C; i += W) store(y + i, load<V>(y + i) + Cache::many(at + i) * s);
    for (; i < C; i++) y[i] += Cache::one(at[i]) * s;
  }
}

static void narrow(const float* x, uint16_t* y, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  for (; i + W <= n; i += W) {
    const auto sixteen = _mm512_cvtneps_pbh((__m512)load<V>(x + i));
    std::memcpy(y + i, &sixteen, sizeof(sixteen));
  }
#endif
  for (; i < n; i++) y[i] = narrow(x[i]);
}

static void add(float* x, const float* y, int64_t rows, int64_t n, Range s) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = s.begin; i < s.end; i++) x[r * n + i] += y[r * n + i];
}

static void decode(const Model& m, const Call& c) {
  const int64_t B = c.rows, D = m.dim, C = m.channels, H = m.heads, K = m.kv_heads, F = m.hidden;
  int64_t longest = 0;
  for (int64_t r = 0; r < B; r++) longest = std::max(longest, c.lengths[r] + 1);
  // Every buffer is aligned to vectors: a vector across two cache lines costs two reads.
  const auto aligned = [](int64_t n) { return (n + W - 1) / W * W; };
  const int64_t heads_size = B * H * C, kv_size = aligned(B * K * C), widest = std::max(std::max(D, F), H * C);
  const int64_t own = aligned(B * D + longest + W) + aligned(B * widest);
  std::vector<float> memory(2 * heads_size + 2 * kv_size + 2 * B * F + B * D + c.threads * own + W);
  float* q = (float*)(((uintptr_t)memory.data() + sizeof(V) - 1) / sizeof(V) * sizeof(V));
  float *y = q + heads_size, *k = y + heads_size, *v = k + kv_size, *up = v + kv_size;
  float *gate = up + B * F, *out = gate + B * F, *owned = out + B * D;
  std::vector<Progress> progress((6 * m.layers + 2) * c.threads);
  const bool half = m.cache_kind == BF16, pairs = PAIRS && half;
#pragma omp parallel num_threads(c.threads)
  {
    float *x = owned + omp_get_thread_num() * own, *scores = x + B * D;
    uint16_t* halves = (uint16_t*)(x + own - aligned(B * widest));
    Stages stages{progress.data(), c.threads, omp_get_thread_num()};
    // Each thread that takes a block normalizes and narrows the inputs itself: they cannot change while a block is left.
    const auto inputs_of = [&](bool& ready, const float* from, int64_t n) {
      if (pairs && !ready) narrow(from, halves, B * n);
      ready = true;
      return Inputs{from, pairs ? halves : nullptr};
    };
    const auto normalized = [&](bool& ready, const float* gain, const float* bias, int64_t layer) {
      for (int64_t r = 0; r < B && !ready; r++)
        norm(c.x + r * D, x + r * D, D, gain + layer * D, bias ? bias + layer * D : nullptr, m.layer_norm, m.eps);
      return inputs_of(ready, x, D);
    };
    for (int64_t l = 0; l < m.layers; l++) {
      bool ready = false;
      const int64_t nq = num_blocks(H * C), nk = num_blocks(K * C);
      stages.run(nq + 2 * nk, [&](int64_t i) {
        const Inputs x = normalized(ready, m.attn_norm, m.attn_norm_bias, l);
        if (i < nq) return linear(m.q, l, B, x, q, m.q_bias, block(H * C, i));
        if (i < nq + nk) return linear(m.k, l, B, x, k, m.k_bias, block(K * C, i - nq));
        linear(m.v, l, B, x, v, m.v_bias, block(K * C, i - nq - nk));
      });
      stages.run(B * K, [&](int64_t i) {
        (half ? write_cache<CacheBF16> : write_cache<CacheF32>)(m, c, l, i / K, i % K, k + i * C, v + i * C);
      });
      stages.run(B * H, [&](int64_t i) {
        (half ? attend<CacheBF16> : attend<CacheF32>)(m, c, l, i / H, i % H, q + i * C, y + i * C, scores);
      });
      ready = false;
      stages.run(num_blocks(D), [&](int64_t i) {
        linear(m.o, l, B, inputs_of(ready, y, H * C), out, m.o_bias, block(D, i));
        add(c.x, out, B, D, block(D, i));
      });
      ready = false;
      stages.run(num_blocks(F), [&](int64_t i) {
        const Inputs x = normalized(ready, m.ffn_norm, m.ffn_norm_bias, l);
        const Range hidden = block(F, i);
        linear(m.up, l, B, x, up, m.up_bias, hidden);
        if (m.gate.data) linear(m.gate, l, B, x, gate, m.gate_bias, hidden);
        for (int64_t r = 0; r < B; r++) {
          float *u = up + r * F + hidden.begin, *g = gate + r * F + hidden.begin;
          const int64_t n = hidden.end - hidden.begin;
          activate(m.activation, m.gate.data ? g : u, n);
          if (m.gate.data)
            for (int64_t i = 0; i < n; i++) u[i] *= g[i];
        }
      });
      ready = false;
      stages.run(num_blocks(D), [&](int64_t i) {
        linear(m.down, l, B, inputs_of(ready, up, F), out, m.down_bias, block(D, i));
        add(c.x, out, B, D, block(D, i));
      });
    }
    bool ready = false;
    stages.run(c.logits ? num_blocks(m.head.outputs) : 0, [&](int64_t i) {
      linear(m.head, 0, B, normalized(ready, m.norm, m.norm_bias, 0), c.logits, nullptr, block(m.head.outputs, i));
    });
    stages.run(1, [&](int64_t) {
      normalized(ready, m.norm, m.norm_bias, 0);
      std::copy(x, x + B * D, c.x);
    });
  }
}

extern "C" int step(const Model* model, const Call* call) {  // not 0: no memory, and nothing was written
  try {
    decode(*model, *call);
  } catch (const std::exception&) {
    return 1;
  }
  return 0;
}
