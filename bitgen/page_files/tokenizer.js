// Sentences as ids and back: byte-level BPE as the library `tokenizers` does it, from its tokenizer.json.
//
// What such a file can ask for and is not written here is refused when the file is read, never skipped.

/** A tokenizer.json that asks for something else. */
export class UnknownTokenizer extends Error {}

function require_(holds, what) {
  if (!holds) throw new UnknownTokenizer(`This page cannot read the model's tokenizer: ${what} is not supported.`);
}

// Each of the 256 bytes has a printable stand-in: itself where it is printable, else a character from 256 on
function standIns() {
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(printable(b) ? b : next++));
}
const BYTE_TO_CHAR = standIns();
const CHAR_TO_BYTE = new Map(BYTE_TO_CHAR.map((c, b) => [c, b]));

// How text is split before merging. White space is Unicode's, which JavaScript's \s is not.
const SPACE = '\\p{White_Space}';
const WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+";
const REST = ` ?[^${SPACE}\\p{L}\\p{N}]+|${SPACE}+(?!\\P{White_Space})|${SPACE}+`;
const PIECES = new RegExp(`${WORDS}|${REST}`, 'gu');

// The patterns of bitgen's `lowercase_normalizer`, in JavaScript's words
const WORD = '\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}';
const ALONE = `${WORD}\\xb2\\xb3\\xb9\\xbc-\\xbe`;                    // outside of brackets, ² and ¼ count as well
const PATTERNS = new Map([
  ["(?<!\\w)['-]|['-](?!\\w)|[^\\w\\s'-]|_",
    new RegExp(`(?<![${ALONE}])['-]|['-](?![${ALONE}])|[^${WORD}${SPACE}'-]|_`, 'gu')],
  ['\\s+', new RegExp(`${SPACE}+`, 'gu')],
]);

function replacer({ pattern, content }) {
  if (typeof pattern?.String === 'string') return (x) => x.replaceAll(pattern.String, () => content);
  const known = PATTERNS.get(pattern?.Regex);
  require_(known, `the pattern ${JSON.stringify(pattern)}`);
  return (x) => x.replace(known, () => content);
}

// Lower case character by character: a sigma at the end of a word stays an ordinary one
const lower = (x) => Array.from(x, (c) => c.toLowerCase()).join('');

function stripper({ strip_left: left, strip_right: right }) {
  const ends = [left && `^${SPACE}+`, right && `${SPACE}+$`].filter(Boolean);
  if (!ends.length) return (x) => x;
  return (x) => x.replace(new RegExp(ends.join('|'), 'gu'), '');
}

const NORMALIZERS = {
  Sequence: ({ normalizers }) => {
    const all = normalizers.map(normalizer);
    return (x) => all.reduce((y, one) => one(y), x);
  },
  NFC: () => (x) => x.normalize('NFC'),
  NFD: () => (x) => x.normalize('NFD'),
  NFKC: () => (x) => x.normalize('NFKC'),
  NFKD: () => (x) => x.normalize('NFKD'),
  Lowercase: () => lower,
  Replace: replacer,
  Strip: stripper,
  Prepend: ({ prepend }) => (x) => (x ? prepend + x : x),
};

function normalizer(json) {
  if (!json) return (x) => x;
  require_(Object.hasOwn(NORMALIZERS, json.type), `the normalizer ${json.type}`);
  return NORMALIZERS[json.type](json);
}

function checkModel(model) {
  require_(model.type === 'BPE' || (!model.type && model.merges), `a model of type ${model.type}`);
  require_(!model.dropout, 'dropout of merges');
  require_(!model.continuing_subword_prefix && !model.end_of_word_suffix, 'a mark within or behind words');
  require_(!model.byte_fallback && model.unk_token == null, 'an unknown token');
}

// Whether text is split as GPT-2 splits it
function checkSplit(json) {
  require_(json?.type === 'ByteLevel' && json.use_regex !== false, `the pre-tokenizer ${json?.type}`);
}

export class Tokenizer {
  constructor(json) {
    checkModel(json.model);
    checkSplit(json.pre_tokenizer);
    require_(json.decoder?.type === 'ByteLevel', `the decoder ${json.decoder?.type}`);
    const added = json.added_tokens ?? [];
    require_(added.every((t) => t.special), 'an added token that is a word');
    this.normalize = normalizer(json.normalizer);
    this.prefixSpace = Boolean(json.pre_tokenizer.add_prefix_space);
    this.ids = new Map(Object.entries(json.model.vocab));
    this.ignoreMerges = Boolean(json.model.ignore_merges);
    this.tokens = new Map([...this.ids].map(([token, id]) => [id, token]));
    for (const t of added) this.tokens.set(t.id, t.content);
    this.special = new Set(added.map((t) => t.id));
    this.merges = this.#ranked(json.model.merges);
    this.seen = new Map();                                             // pieces whose ids are known
  }

  // 'a b' as a pair of ids, to its rank and the id of 'ab'
  #ranked(merges) {
    const pairs = merges.filter((m) => typeof m !== 'string' || !m.startsWith('#version'));
    return new Map(pairs.map((m, rank) => {
      const [a, b] = typeof m === 'string' ? m.split(' ') : m;
      return [`${this.ids.get(a)} ${this.ids.get(b)}`, [rank, this.ids.get(a + b)]];
    }));
  }

  // Ids of one piece: the pair of the lowest rank is merged, the leftmost first, until none is left
  #merge(piece) {
    const whole = Array.from(new TextEncoder().encode(piece), (b) => BYTE_TO_CHAR[b]).join('');
    if (this.ignoreMerges && this.ids.has(whole)) return [this.ids.get(whole)];
    const ids = Array.from(whole, (c) => this.ids.get(c)).filter((id) => id !== undefined);
    for (;;) {
      let best = null;
      for (let i = 0; i + 1 < ids.length; i += 1) {
        const found = this.merges.get(`${ids[i]} ${ids[i + 1]}`);
        if (found && (!best || found[0] < best.rank)) best = { rank: found[0], id: found[1], at: i };
      }
      if (!best) return ids;
      ids.splice(best.at, 2, best.id);
    }
  }

  /** Ids of a text, without special ones. */
  encode(text) {
    let plain = this.normalize(text);
    if (this.prefixSpace && !plain.startsWith(' ')) plain = ` ${plain}`;
    return (plain.match(PIECES) ?? []).flatMap((piece) => {
      if (!this.seen.has(piece)) this.seen.set(piece, this.#merge(piece));
      return this.seen.get(piece);
    });
  }

  /** The text of ids; special ones are left out, bytes that are no whole character become �. */
  decode(ids) {
    const bytes = ids.filter((id) => !this.special.has(id) && this.tokens.has(id)).flatMap((id) => {
      const found = Array.from(this.tokens.get(id), (c) => CHAR_TO_BYTE.get(c));
      return found.includes(undefined) ? [...new TextEncoder().encode(this.tokens.get(id))] : found;
    });
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(bytes));
  }
}

const PYTHON_SPACE = '[\\p{White_Space}\\x1c-\\x1f]+';

/** Without white space at the ends, as Python's `strip` has it. */
export const strip = (x) => x.replace(new RegExp(`^${PYTHON_SPACE}|${PYTHON_SPACE}$`, 'gu'), '');

/** A sentence as in training: NFC, single spaces, `written` special tokens spaced out. */
export function plainText(text, written) {
  const spaced = strip(text.toWellFormed().normalize('NFC').replace(new RegExp(PYTHON_SPACE, 'gu'), ' '));
  return written.reduce((x, token) => x.replaceAll(token, () => Array.from(token).join(' ')), spaced);
}
