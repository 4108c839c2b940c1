// Attention of neighbouring rows that list blocks of their own, with every block fetched once for all of them.
// shared_blocks.py compiles it with what it defines, GROUP as the query heads per KV head, and launches it.
//
// A program has TILE consecutive rows of one request and the query heads of one KV head. One warp merges the lists of the
// rows in ascending order and fetches each block that one of them names into a ring in shared memory. Each of the other
// warps has 16 query vectors, 16 / GROUP rows times their heads, and takes in the blocks that one of its rows names.
// Programs that begin together thus go through the context together, and find most of it in the L2 cache.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;
typedef unsigned short bf16;  // as bits

#define NEGATIVE_INFINITY __int_as_float(0xff800000)

struct alignas(64) TensorMap {
  u64 words[16];
};

constexpr int D = HEAD_DIM;
constexpr int ROW_BYTES = 128;           // of half a head: what a swizzled row in shared memory holds
constexpr int HALF_BYTES = BLOCK * ROW_BYTES;
constexpr int TENSOR_BYTES = 2 * HALF_BYTES;
constexpr int STAGE_BYTES = 2 * TENSOR_BYTES;  // keys, then values
constexpr int TILE = WARPS * VECTORS / GROUP;
constexpr int THREADS = 32 * (WARPS + FETCHING_WARPS);
constexpr int ATTEND_REGISTERS = 232, FETCH_REGISTERS = 40;  // per thread; of 65,536 for all
constexpr int AHEAD = 8;                 // entries whose slots are looked up before they are fetched
constexpr int QUEUE = 16;                // room for them
constexpr int NO_BLOCK = 0x7fffffff;
constexpr u32 WHOLE_WARP = 0xffffffffu;
static_assert(D == 128 && BLOCK == 64 && VECTORS == 16, "the products are written for these");
static_assert(TILE <= 32, "a lane of the fetching warp follows each row");
static_assert(WARPS % 4 == 0 && FETCHING_WARPS == 4, "registers are given to four warps at a time");
static_assert(32 * (WARPS * ATTEND_REGISTERS + FETCHING_WARPS * FETCH_REGISTERS) <= 65536 / THREADS / 8 * 8 * THREADS,
              "a program has the registers of its launch");

struct Shared {
  unsigned char stages[STAGES][STAGE_BYTES];
  u64 full[STAGES];
  u64 empty[STAGES];
  int2 entries[STAGES];  // block, and the rows that name it as bits; no bits: the end
  int2 queue[QUEUE];
  int slots[QUEUE];
};

static_assert(sizeof(Shared) + 1024 <= SHARED_BYTES, "the stages begin at a multiple of 1024 bytes");

struct Tile {
  int request, first_row, rows, position;  // position of the first row
};

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void barrier_init(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}

__device__ __forceinline__ void barrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

__device__ __forceinline__ void barrier_expect(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(u64* barrier, u32 phase) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(phase)
      : "memory");
}

__device__ __forceinline__ void fetch(void* target, const TensorMap* map, u64* barrier, int dim, int head, int slot) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
      ::"r"(shared_address(target)), "l"(map), "r"(dim), "r"(head), "r"(slot), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void load_matrices(u32 (&matrices)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&matrices)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(address)
               : "memory");
}

// sums [16, 8] += left [16, 16] times right [16, 8]
__device__ __forceinline__ void multiply(float* sums, const u32 (&left)[4], u32 right0, u32 right1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ u32 pack(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// The same tiles as locate_tile in row_tiles.py.
__device__ Tile locate_tile(int tile, const int* query_start, const int* kv_lens, int requests, int rows) {
  int request = 0;
  for (int first = 0; first < requests; first += THREADS) {
    int candidate = first + threadIdx.x;
    bool before = candidate < requests && min(query_start[candidate + 1], rows) / TILE + candidate + 1 <= tile;
    request += __syncthreads_count(before);
  }
  request = min(request, requests - 1);
  int start = min(query_start[request], rows), end = query_start[request + 1];
  int row = start + (tile - (start / TILE + request)) * TILE;
  return {request, row, min(min(end, rows) - row, TILE), kv_lens[request] - end + row};
}

// For one warp. Lane i follows the list of row i; rows that attend to every block up to their own are others' business.
__device__ void fetch_blocks(Shared& shared, const Tile& tile, const TensorMap* keys, const TensorMap* values,
                             const int* block_ids, i64 ids_token_stride, int listed, int sparse_from,
                             const int* token_slots, int head) {
  int lane = threadIdx.x % 32, position = tile.position + lane, next = 0;
  const int* list = block_ids + (tile.first_row + min(lane, tile.rows - 1)) * ids_token_stride;
  bool own_list = lane < tile.rows && position >= sparse_from;
  if (own_list && position / BLOCK < listed) own_list = __ldg(list + position / BLOCK) < 0;
  auto advance = [&] {
    int block = own_list && next < listed ? __ldg(list + next) : -1;
    ++next;
    return block < 0 ? NO_BLOCK : block;
  };
  int current = advance(), merged = 0;
  // Puts the lowest block that is left into the queue, and has it looked up where it lies.
  auto merge = [&] {
    int block = __reduce_min_sync(WHOLE_WARP, current);
    bool names = block != NO_BLOCK && current == block;
    u32 members = __ballot_sync(WHOLE_WARP, names);
    if (names) current = advance();
    if (lane == 0) {
      int place = merged % QUEUE;
      shared.queue[place] = make_int2(block, members);
      if (members)
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(&shared.slots[place])),
                     "l"(token_slots + static_cast<i64>(block) * BLOCK)
                     : "memory");
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
    ++merged;
  };
  for (int i = 0; i < AHEAD; ++i) merge();
  for (int i = 0;; ++i) {
    merge();
    int2 entry = make_int2(0, 0);
    if (lane == 0) {
      int stage = i % STAGES, place = i % QUEUE;
      asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD) : "memory");
      entry = shared.queue[place];
      barrier_wait(&shared.empty[stage], i / STAGES % 2 ^ 1);
      shared.entries[stage] = entry;
      if (entry.y) {
        unsigned char* target = shared.stages[stage];
        u64* full = &shared.full[stage];
        int slot = shared.slots[place];
        barrier_expect(full, STAGE_BYTES);
        fetch(target, keys, full, 0, head, slot);
        fetch(target + HALF_BYTES, keys, full, D / 2, head, slot);
        fetch(target + TENSOR_BYTES, values, full, 0, head, slot);
        fetch(target + TENSOR_BYTES + HALF_BYTES, values, full, D / 2, head, slot);
      } else {
        barrier_arrive(&shared.full[stage]);
      }
    }
    if (__shfl_sync(WHOLE_WARP, entry.y, 0) == 0) return;
  }
}

// Slots past a request's last token belong to nobody: a weight of zero would not cancel what they hold.
__device__ void clear_values(unsigned char* values, int first) {
  for (int i = first * 8 + threadIdx.x % 32; i < BLOCK * 8; i += 32)
    for (int half = 0; half < 2; ++half)
      *reinterpret_cast<int4*>(values + half * HALF_BYTES + i * 16) = make_int4(0, 0, 0, 0);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncwarp();
}

// A warp's attention, online softmax in base 2. A thread holds elements of the vectors lane / 4 and eight further on.
struct Attention {
  u32 queries[D / 16][4];
  float output[D / 8][4];
  float largest[2], sum[2];
  u32 key_offsets[4], value_offsets[4];  // of this lane's rows in a swizzled tile, by 32 bytes of a row

  __device__ __forceinline__ Attention() {
    int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      key_offsets[k] = (matrix / 2 * 8 + row) * ROW_BYTES + ((k * 2 + matrix % 2 ^ row) << 4);
      value_offsets[k] = (matrix % 2 * 8 + row) * ROW_BYTES + ((k * 2 + matrix / 2 ^ row) << 4);
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n) output[n][0] = output[n][1] = output[n][2] = output[n][3] = 0.0f;
    largest[0] = largest[1] = NEGATIVE_INFINITY;
    sum[0] = sum[1] = 0.0f;
  }

  // Takes in a block at shared address ``keys``, of whose tokens each of the two vectors sees those up to ``last``.
  __device__ __forceinline__ void take(u32 keys, const int (&last)[2], float scale) {
    float logits[BLOCK / 8][4] = {};
#pragma unroll
    for (int k = 0; k < D / 16; ++k)
#pragma unroll
      for (int n = 0; n < BLOCK / 16; ++n) {
        u32 right[4];
        load_matrices(right, keys + key_offsets[k % 4] + k / 4 * HALF_BYTES + n * 16 * ROW_BYTES);
        multiply(logits[2 * n], queries[k], right[0], right[1]);
        multiply(logits[2 * n + 1], queries[k], right[2], right[3]);
      }
    u32 weights[BLOCK / 16][4];
    soften(logits, weights, last, scale);
    u32 values = keys + TENSOR_BYTES;
#pragma unroll
    for (int k = 0; k < BLOCK / 16; ++k)
#pragma unroll
      for (int n = 0; n < D / 16; ++n) {
        u32 right[4];
        load_transposed(right, values + value_offsets[n % 4] + n / 4 * HALF_BYTES + k * 16 * ROW_BYTES);
        multiply(output[2 * n], weights[k], right[0], right[1]);
        multiply(output[2 * n + 1], weights[k], right[2], right[3]);
      }
  }

  // Weights of tokens from their logits; output, largest logits and the thread's part of the sums are brought up to date.
  __device__ __forceinline__ void soften(float (&logits)[BLOCK / 8][4], u32 (&weights)[BLOCK / 16][4], const int (&last)[2],
                                         float scale) {
    float decay[2];
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (last[i] < BLOCK - 1) {
#pragma unroll
        for (int n = 0; n < BLOCK / 4; ++n)
          if (n / 2 * 8 + column + n % 2 > last[i]) logits[n / 2][i * 2 + n % 2] = NEGATIVE_INFINITY;
      }
      float block_max = logits[0][i * 2];
#pragma unroll
      for (int n = 1; n < BLOCK / 4; ++n) block_max = fmaxf(block_max, logits[n / 2][i * 2 + n % 2]);
      block_max = fmaxf(block_max, __shfl_xor_sync(WHOLE_WARP, block_max, 1));
      block_max = fmaxf(block_max, __shfl_xor_sync(WHOLE_WARP, block_max, 2));
      float new_max = fmaxf(largest[i], block_max * scale);
      float base = new_max == NEGATIVE_INFINITY ? 0.0f : new_max;  // of vectors that have seen no token yet
      decay[i] = exp2_fast(largest[i] - base);
      largest[i] = new_max;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < BLOCK / 8; ++n) {
        float left = exp2_fast(fmaf(logits[n][i * 2], scale, -base));
        float right = exp2_fast(fmaf(logits[n][i * 2 + 1], scale, -base));
        total += left + right;
        weights[n / 2][n % 2 * 2 + i] = pack(left, right);
      }
      sum[i] = sum[i] * decay[i] + total;
    }
    if (__any_sync(WHOLE_WARP, decay[0] != 1.0f || decay[1] != 1.0f)) {
#pragma unroll
      for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int j = 0; j < 4; ++j) output[n][j] *= decay[j / 2];
    }
  }
};

// For each of the other warps.
__device__ void attend_rows(Shared& shared, const Tile& tile, const bf16* queries, bf16* output, int kv_len, int head,
                            i64 query_token_stride, i64 query_head_stride, i64 output_token_stride,
                            i64 output_head_stride, float scale) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  Attention attention;
  int row[2], query_head[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int vector = warp * VECTORS + lane / 4 + i * 8;
    row[i] = vector / GROUP;
    query_head[i] = head * GROUP + vector % GROUP;
    const bf16* p = queries + (tile.first_row + row[i]) * query_token_stride + query_head[i] * query_head_stride;
#pragma unroll
    for (int k = 0; k < D / 8; ++k)
      attention.queries[k / 2][i + k % 2 * 2] =
          row[i] < tile.rows ? __ldg(reinterpret_cast<const u32*>(p + k * 8 + lane % 4 * 2)) : 0;
  }
  for (int i = 0;; ++i) {
    int stage = i % STAGES;
    barrier_wait(&shared.full[stage], i / STAGES % 2);
    int2 entry = shared.entries[stage];
    if (entry.y == 0) break;
    int last[2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      last[j] = static_cast<u32>(entry.y) >> row[j] & 1 ? tile.position + row[j] - entry.x * BLOCK : -1;
    if (__any_sync(WHOLE_WARP, max(last[0], last[1]) >= 0)) {
      int past = kv_len - entry.x * BLOCK;
      if (past < BLOCK) clear_values(shared.stages[stage] + TENSOR_BYTES, past);
      attention.take(shared_address(shared.stages[stage]), last, scale);
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(&shared.empty[stage]);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = attention.sum[i];
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 1);
    sum += __shfl_xor_sync(WHOLE_WARP, sum, 2);
    if (sum == 0.0f) continue;  // no row, or one of the others' business
    float share = 1.0f / sum;
    bf16* p = output + (tile.first_row + row[i]) * output_token_stride + query_head[i] * output_head_stride;
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<u32*>(p + n * 8 + lane % 4 * 2) =
          pack(attention.output[n][i * 2] * share, attention.output[n][i * 2 + 1] * share);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    _shared_blocks_kernel(const __grid_constant__ TensorMap keys, const __grid_constant__ TensorMap values, const bf16* queries,
           const int* block_ids, bf16* output, const int* query_start, const int* kv_lens, const int* sparse_from,
           const i64* request_rows, const int* token_slots, i64 token_slots_stride, i64 query_token_stride,
           i64 query_head_stride, i64 ids_token_stride, i64 ids_head_stride, i64 output_token_stride,
           i64 output_head_stride, int requests, int rows, int listed, float scale, int first_tile, int first_head) {
  extern __shared__ unsigned char raw[];
  Shared& shared = *reinterpret_cast<Shared*>(reinterpret_cast<u64>(raw) + 1023 & ~1023ull);
  Tile tile = locate_tile(first_tile + blockIdx.x, query_start, kv_lens, requests, rows);
  int head = first_head + blockIdx.y;
  if (tile.rows <= 0) return;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < STAGES; ++stage) {
      barrier_init(&shared.full[stage], 1);
      barrier_init(&shared.empty[stage], WARPS);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (threadIdx.x / 32 >= WARPS) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FETCH_REGISTERS));
    if (threadIdx.x / 32 > WARPS) return;  // one warp is enough
    fetch_blocks(shared, tile, &keys, &values, block_ids + head * ids_head_stride, ids_token_stride, listed,
                 sparse_from[tile.request], token_slots + request_rows[tile.request] * token_slots_stride, head);
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(ATTEND_REGISTERS));
    attend_rows(shared, tile, queries, output, kv_lens[tile.request], head, query_token_stride, query_head_stride,
                output_token_stride, output_head_stride, scale);
  }
}
