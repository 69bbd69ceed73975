// What the model is taught on this device: `Memory`, `nearest` and `novelty` of bitgen.runtime in double precision.
//
// An item is an image feature and a text feature, one behind the other. It is written over K slots at once, with
// weights (its address) found by ridge regression on a prior that was learned in training.

export class MemoryFull extends Error {}

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const unit = (x) => {
  const norm = Math.max(Math.sqrt(dot(x, x)), 1e-12);
  return x.map((v) => v / norm);
};
const identity = (k, value) => Array.from({ length: k }, (_, i) => {
  const row = new Float64Array(k);
  row[i] = value;
  return row;
});
const gram = (rows) => rows.map((a) => Float64Array.from(rows, (b) => dot(a, b)));
const products = (rows, x) => Float64Array.from(rows, (row) => dot(row, x));

/** x of a·x = b, by elimination with the largest pivot of each column first. */
export function linearSolve(a, b) {
  const m = a.map((row) => Float64Array.from(row));
  const x = Float64Array.from(b);
  const k = x.length;
  for (let c = 0; c < k; c += 1) {
    let pivot = c;
    for (let r = c + 1; r < k; r += 1) if (Math.abs(m[r][c]) > Math.abs(m[pivot][c])) pivot = r;
    [m[c], m[pivot]] = [m[pivot], m[c]];
    [x[c], x[pivot]] = [x[pivot], x[c]];
    for (let r = c + 1; r < k; r += 1) {
      const factor = m[r][c] / m[c][c];
      for (let j = c; j < k; j += 1) m[r][j] -= factor * m[c][j];
      x[r] -= factor * x[c];
    }
  }
  for (let r = k - 1; r >= 0; r -= 1) {
    for (let j = r + 1; j < k; j += 1) x[r] -= m[r][j] * x[j];
    x[r] /= m[r][r];
  }
  return x;
}

/** (g + ridge · its mean diagonal) x = right. */
export function ridgeSolve(g, right, ridge) {
  const mean = g.reduce((sum, row, i) => sum + row[i], 0) / g.length;
  const level = ridge * Math.max(mean, 1e-12);
  const raised = g.map((row, i) => Float64Array.from(row, (v, j) => v + (i === j ? level : 0)));
  return linearSolve(raised, right);
}

/** The lower triangle L of a = L·Lᵀ. */
export function cholesky(a) {
  const low = a.map((row) => new Float64Array(row.length));
  for (let i = 0; i < a.length; i += 1) {
    for (let j = 0; j <= i; j += 1) {
      let rest = a[i][j];
      for (let k = 0; k < j; k += 1) rest -= low[i][k] * low[j][k];
      low[i][j] = i === j ? Math.sqrt(rest) : rest / low[j][j];
    }
  }
  return low;
}

export const SIDES = ['image', 'text'];

export class Memory {
  /** `prior`: k rows; `strangers`: per side, cosines of what was never remembered; `pairs`: how many gave them. */
  constructor({ prior, ridge, storeRidge, strangers, pairs }) {
    Object.assign(this, { prior, ridge, storeRidge, strangers, pairs });
    this.slots = prior.length;
    this.width = prior[0].length;
    this.gram = gram(prior);
    this.codes = new Array(this.slots).fill(null);
    this.addresses = new Array(this.slots).fill(null);
    this.#clear();
  }

  #clear() {
    this.precision = identity(this.slots, this.storeRidge);
    this.rows = Array.from({ length: this.slots }, () => new Float64Array(this.width));
  }

  get used() { return this.codes.flatMap((code, slot) => (code ? [slot] : [])); }

  side(x, side) { return side === 'image' ? x.subarray(0, this.width / 2) : x.subarray(this.width / 2); }

  // Add (sign 1) an item, or take it away (sign −1), by a change of rank one
  #update(w, z, sign) {
    for (let i = 0; i < this.slots; i += 1) {
      for (let j = 0; j < this.slots; j += 1) this.precision[i][j] += sign * w[i] * w[j];
    }
    const read = new Float64Array(this.width);
    this.rows.forEach((row, i) => row.forEach((v, j) => { read[j] += w[i] * v; }));
    const gain = linearSolve(this.precision, w);
    this.rows.forEach((row, i) => row.forEach((_, j) => { row[j] += sign * gain[i] * (z[j] - read[j]); }));
  }

  /** Write an item at a slot that holds nothing. */
  write(slot, z) {
    const w = ridgeSolve(this.gram, products(this.prior, z), this.ridge);
    this.#update(w, z, 1);
    this.codes[slot] = Float64Array.from(z);
    this.addresses[slot] = w;
  }

  /** Write an item; its slot. */
  put(z) {
    const slot = this.codes.indexOf(null);
    if (slot < 0) throw new MemoryFull(`All ${this.slots} places are taken. Please let something be forgotten first.`);
    this.write(slot, z);
    return slot;
  }

  /** Forget an item as if it had never been written. */
  drop(slot) {
    if (!this.codes[slot]) throw new RangeError(`Nothing is kept at ${slot}.`);
    this.#update(this.addresses[slot], this.codes[slot], -1);
    this.codes[slot] = null;
    this.addresses[slot] = null;
    if (!this.used.length) this.#clear();
  }

  /** {slot, cosine} of the item that a feature retrieves; the memory must hold one. */
  nearest(query, side) {
    const low = cholesky(this.precision);
    const rows = low.map((_, i) => {                                   // Lᵀ · rows
      const sum = new Float64Array(this.width);
      for (let r = i; r < this.slots; r += 1) this.rows[r].forEach((v, j) => { sum[j] += low[r][i] * v; });
      return sum;
    });
    const part = rows.map((row) => this.side(row, side));
    const w = ridgeSolve(gram(part), products(part, query), this.ridge);
    const read = new Float64Array(this.width);
    rows.forEach((row, i) => row.forEach((v, j) => { read[j] += w[i] * v; }));
    const found = unit(read);
    const cosines = this.used.map((slot) => [dot(found, unit(this.codes[slot])), slot]);
    const [, slot] = cosines.reduce((best, one) => (one[0] > best[0] ? one : best));
    const known = unit(this.side(this.codes[slot], side));
    return { slot, cosine: dot(unit(Float64Array.from(query)), known) };
  }

  /** Chance that one of as many strangers as are remembered comes as near; null: never calibrated. */
  novelty(cosine, side) {
    if (!this.pairs) return null;
    const reach = this.strangers[SIDES.indexOf(side)];
    const below = reach.findIndex((x) => x >= cosine);                 // reach goes up
    const k = Math.min(Math.max(below < 0 ? reach.length : below, 1), reach.length - 1);
    const part = Math.min(Math.max((cosine - reach[k - 1]) / Math.max(reach[k] - reach[k - 1], 1e-12), 0), 1);
    const p = Math.max(2 ** (-(k - 1 + part) / 4), 1 / (1 + this.pairs));
    return -Math.expm1(this.used.length * Math.log1p(-p));
  }
}
