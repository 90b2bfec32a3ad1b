// Draws a program of irdm/browser.py: arrays {shape, data}, a function an operation, one picture at a time.
const size = (shape) => shape.reduce((product, side) => product * side, 1);

function half(bits) { // all 65536 numbers of half precision, once
  const sign = bits >> 15 ? -1 : 1, power = (bits >> 10) & 31, rest = bits & 1023;
  return sign * (power ? 2 ** (power - 15) * (1 + rest / 1024) : rest * 2 ** -24);
}
const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => half(bits));

function decoded({ shape, type, data }) {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)).buffer;
  if (type === "f16") return { shape, data: Float32Array.from(new Uint16Array(bytes), (bits) => HALVES[bits]) };
  return { shape, data: new { f32: Float32Array, i32: Int32Array, u8: Uint8Array }[type](bytes) };
}

// Element by element; shapes are aligned at their ends, and a side of 1 is repeated.
function pairwise(f) {
  return ({ shape }, a, b) => {
    const data = new Float32Array(size(shape)), rank = shape.length, at = Array(rank).fill(0);
    const strides = [a, b].map((one) => {
      const found = Array(rank).fill(0);
      for (let i = one.shape.length - 1, step = 1; i >= 0; step *= one.shape[i--]) {
        if (one.shape[i] > 1) found[i + rank - one.shape.length] = step;
      }
      return found;
    });
    for (let n = 0, i = 0, j = 0; n < data.length; n++) {
      data[n] = f(a.data[i], b.data[j]);
      for (let k = rank - 1; k >= 0; k--) { // count up, the last side first
        i += strides[0][k]; j += strides[1][k];
        if (++at[k] < shape[k]) break;
        i -= strides[0][k] * shape[k]; j -= strides[1][k] * shape[k]; at[k] = 0;
      }
    }
    return data;
  };
}

const each = (f) => (step, x) => x.data.map(f);

const OPERATIONS = {
  view: (step, x) => x.data,
  add: pairwise((a, b) => a + b),
  mul: pairwise((a, b) => a * b),
  silu: each((x) => x / (1 + Math.exp(-x))),
  sigmoid: each((x) => 1 / (1 + Math.exp(-x))),
  rsqrt: each((x) => 1 / Math.sqrt(x)),
  clamp: each((x) => Math.min(Math.max(x, 0), 1)),
  permute({ shape, dims }, x) {
    const data = new Float32Array(size(shape)), at = shape.map(() => 0);
    const strides = dims.map((dim) => size(x.shape.slice(dim + 1)));
    for (let n = 0, from = 0; n < data.length; n++) {
      data[n] = x.data[from];
      for (let k = shape.length - 1; k >= 0; k--) { // count up, the last side first
        from += strides[k];
        if (++at[k] < shape[k]) break;
        from -= strides[k] * shape[k]; at[k] = 0;
      }
    }
    return data;
  },
  join({ shape, dim }, ...parts) {
    const data = new Float32Array(size(shape)), whole = size(shape.slice(dim));
    let start = 0;
    for (const part of parts) {
      const one = size(part.shape.slice(dim));
      for (let i = 0; i * whole < data.length; i++) data.set(part.data.subarray(i * one, (i + 1) * one), i * whole + start);
      start += one;
    }
    return data;
  },
  mean(step, x) { // of each row
    const width = x.shape.at(-1);
    return Float32Array.from({ length: x.data.length / width }, (_, n) =>
      x.data.subarray(n * width, (n + 1) * width).reduce((sum, value) => sum + value, 0) / width);
  },
  normed({ eps }, x) { // each row less its mean, over its spread
    const width = x.shape.at(-1), data = new Float32Array(x.data.length);
    for (let from = 0; from < data.length; from += width) {
      const row = x.data.subarray(from, from + width), mean = row.reduce((sum, value) => sum + value, 0) / width;
      const spread = Math.sqrt(row.reduce((sum, value) => sum + (value - mean) ** 2, 0) / width + eps);
      row.forEach((value, i) => { data[from + i] = (value - mean) / spread; });
    }
    return data;
  },
  attention({ shape }, q, k, v) { // [..., n, d] with [..., m, d] and [..., m, e]
    const data = new Float32Array(size(shape)), [n, e] = shape.slice(-2), [m, d] = k.shape.slice(-2);
    for (let head = 0; head * n * e < data.length; head++) for (let i = 0; i < n; i++) {
      const from = (head * n + i) * d, row = data.subarray((head * n + i) * e, (head * n + i + 1) * e);
      const weights = Array.from({ length: m }, (_, j) => {
        let like = 0;
        for (let c = 0; c < d; c++) like += q.data[from + c] * k.data[(head * m + j) * d + c];
        return like / Math.sqrt(d);
      });
      const most = weights.reduce((a, b) => Math.max(a, b)), powers = weights.map((like) => Math.exp(like - most));
      const total = powers.reduce((a, b) => a + b);
      for (let j = 0; j < m; j++) for (let c = 0; c < e; c++) row[c] += powers[j] / total * v.data[(head * m + j) * e + c];
    }
    return data;
  },
  rows(step, table, numbers) {
    const width = table.shape[1], data = new Float32Array(size(step.shape));
    numbers.data.forEach((row, i) => data.set(table.data.subarray(row * width, (row + 1) * width), i * width));
    return data;
  },
  slice({ shape, dim, start }, x) {
    const data = new Float32Array(size(shape)), inner = size(shape.slice(dim + 1));
    const kept = shape[dim] * inner, whole = x.shape[dim] * inner;
    for (let i = 0; i * kept < data.length; i++) {
      data.set(x.data.subarray(i * whole + start * inner, i * whole + start * inner + kept), i * kept);
    }
    return data;
  },
  linear({ shape }, x, weight, bias) { // [n, k] times [k, m]
    const [k, m] = weight.shape, data = new Float32Array(size(shape));
    for (let n = 0; n * m < data.length; n++) {
      const row = data.subarray(n * m, (n + 1) * m);
      if (bias) row.set(bias.data);
      for (let i = 0; i < k; i++) {
        const value = x.data[n * k + i], from = i * m;
        for (let j = 0; j < m; j++) row[j] += value * weight.data[from + j];
      }
    }
    return data;
  },
  convolution({ shape: [, outs, high, wide], pad: [up, left] }, x, weight, bias) { // stride 1
    const [, ins, rows, columns] = weight.shape, [, , height, width] = x.shape;
    const data = new Float32Array(outs * high * wide);
    for (let o = 0; o < outs; o++) {
      const map = data.subarray(o * high * wide, (o + 1) * high * wide);
      if (bias) map.fill(bias.data[o]);
      for (let c = 0; c < ins; c++) for (let r = 0; r < rows; r++) for (let s = 0; s < columns; s++) {
        const value = weight.data[((o * ins + c) * rows + r) * columns + s];
        const top = Math.max(0, up - r), bottom = Math.min(high, height + up - r);
        const first = Math.max(0, left - s), last = Math.min(wide, width + left - s);
        for (let y = top; y < bottom; y++) {
          const from = (c * height + y + r - up) * width + s - left, to = y * wide;
          for (let z = first; z < last; z++) map[to + z] += value * x.data[from + z];
        }
      }
    }
    return data;
  },
  bilinear({ shape }, x) { // corners of pixels aligned, as PyTorch's align_corners=False
    const [n, c, high, wide] = shape, [, , height, width] = x.shape, data = new Float32Array(size(shape));
    const along = (to, from) => Array.from({ length: to }, (_, i) => {
      const at = Math.max(0, (i + 0.5) * from / to - 0.5), low = Math.floor(at);
      return [low, Math.min(low + 1, from - 1), at - low];
    });
    const down = along(high, height), across = along(wide, width);
    for (let m = 0, to = 0; m < n * c; m++) for (const [a, b, t] of down) {
      const above = (m * height + a) * width, below = (m * height + b) * width;
      for (const [l, r, u] of across) {
        data[to++] = (1 - t) * ((1 - u) * x.data[above + l] + u * x.data[above + r])
          + t * ((1 - u) * x.data[below + l] + u * x.data[below + r]);
      }
    }
    return data;
  },
};

function generator({ steps, picture, arrays }) {
  const known = Object.fromEntries(Object.entries(arrays).map(([name, array]) => [name, decoded(array)]));
  const row = ({ shape, data }, i) => {
    const one = size(shape.slice(1));
    return { shape: [1, ...shape.slice(1)], data: data.subarray(i * one, (i + 1) * one) };
  };
  const noises = known["check.noise"], pictures = known["check.pictures"];
  const draw = (choice, noise) => {
    const made = { ...known, noise: { shape: [1, ...noises.shape.slice(1)], data: noise } };
    for (const name in known) if (name.startsWith("choice.")) made[name.slice(7)] = row(known[name], choice);
    for (const step of steps) {
      made[step.out] = { shape: step.shape, data: OPERATIONS[step.op](step, ...step.in.map((name) => made[name])) };
    }
    return { shape: made[picture].shape.slice(1), data: made[picture].data.map((x) => Math.round(255 * x)) };
  };
  const worst = () => { // grey levels from what PyTorch drew of the same noise
    let most = 0;
    known["check.choice"].data.forEach((choice, i) => {
      const wanted = row(pictures, i).data;
      draw(choice, row(noises, i).data).data.forEach((x, j) => { most = Math.max(most, Math.abs(x - wanted[j])); });
    });
    return most;
  };
  return { draw, worst, numbers: size(noises.shape.slice(1)) };
}

// Standard normal numbers, number i decided by the seed, the picture and i alone: a hash of a counter, then Box and Muller.
function mixed(x) {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}
function normal(count, seed, picture) {
  const key = mixed(mixed(seed + 0x9e3779b9) ^ picture), data = new Float32Array(count);
  const uniform = (i) => (mixed(mixed(i ^ key) + key) + 0.5) / 2 ** 32;
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(uniform(i))), angle = 2 * Math.PI * uniform(i + 1);
    data[i] = radius * Math.cos(angle);
    if (i + 1 < count) data[i + 1] = radius * Math.sin(angle);
  }
  return data;
}

function paint(canvas, { shape: [channels, height, width], data }) {
  canvas.width = width; canvas.height = height;
  const image = new ImageData(width, height), area = height * width;
  for (let i = 0; i < area; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = data[(channels === 3 ? c : 0) * area + i];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
