/**
 * Reads the options of an overlay from text, as a caller gives them to mount(2) or as the mount table shows them. This
 * is the inverse of a plan's options, and follows the table of options. Pure.
 */
import { parseLowerdir, type RawOption, shownLayers, unescapeLayer } from '../mount-strings.js';
import { fromBytes, type Path } from '../paths.js';
import type { OverlayOptionName, OverlayOptions } from './check.js';
import { optionRows, overlayOptionNames } from './table.js';

/** The options of an overlay that a text names, with types and the library's names. */
export interface NamedOptions extends Partial<Pick<OverlayOptions, OverlayOptionName>> {
  readonly lowerdir: readonly Path[];
  readonly datadir: readonly Path[];
  readonly upperdir?: Path;
  readonly workdir?: Path;
  /** Set if the text has `ro`. */
  readonly readonlySuperblock?: true;
}

export interface Reading {
  readonly options: NamedOptions;
  /** Options that the library does not know as overlayfs' own, or whose value overlayfs does not take. */
  readonly others: readonly RawOption[];
  /** True if the lower layers come from lowerdir+ and datadir+. */
  readonly layersApart: boolean;
}

/** Chooses one of the paths for which a shown upperdir or workdir can stand. The likeliest path comes first. */
export type Choose = (readings: readonly [Path, ...Path[]]) => Path;

/** The options by the kernel's names. `off` marks a name that stands for the value false. */
const known = new Map<string, readonly [name: OverlayOptionName, off: boolean]>(
  overlayOptionNames.flatMap((name) => {
    const row = optionRows[name];
    const names: [string, [OverlayOptionName, boolean]][] = [[row?.kernel ?? name, [name, false]]];
    if (row?.form === 'flag' && row.off !== undefined) names.push([row.off, [name, true]]);
    return names;
  }),
);

/** Returns the library's value, or undefined if the option does not take this one. */
function toValue(name: OverlayOptionName, isOff: boolean, value: string | null): boolean | string | undefined {
  const row = optionRows[name];
  switch (row?.form) {
    case 'flag':
      return value === null ? !isOff : undefined;
    case 'switch':
      return value === 'on' ? true : value === 'off' ? false : undefined;
    case 'word':
      return value !== null && row.words.includes(value) ? value : undefined;
    default:
      return value || undefined;
  }
}

class Reader {
  readonly others: RawOption[] = [];
  #options: Record<string, unknown> = {};
  #lowers: Buffer[] = [];
  #data: Buffer[] = [];
  #isList = false;
  readonly #readLayer: (value: Buffer) => Path;

  constructor(readLayer: (value: Buffer) => Path) {
    this.#readLayer = readLayer;
  }

  /** Reads the layers of an option. Returns false if the kernel would not take it. */
  #readLayers({ name, value }: RawOption): boolean {
    if (value === null) return false;
    if (name === 'lowerdir') {
      const layers = parseLowerdir(value);
      if (layers === undefined) return false;
      // The kernel drops earlier layers, including those of lowerdir+.
      [this.#lowers, this.#data, this.#isList] = [layers.lowers, layers.data, value.length > 0];
      return true;
    }
    if (value.length === 0) return false;
    if (name === 'upperdir' || name === 'workdir') {
      this.#options[name] = value;
      return true;
    }
    if (this.#isList || (name === 'lowerdir+' && this.#data.length > 0)) return false;
    (name === 'lowerdir+' ? this.#lowers : this.#data).push(value);
    return true;
  }

  #readOption({ name, value }: RawOption): boolean {
    // For kernels that have fsync, volatile is a value of it.
    const isVolatile = name === 'fsync' && value?.toString() === 'volatile';
    const [option, isOff] = known.get(isVolatile ? 'volatile' : name) ?? [];
    if (option === undefined) return false;
    const read = toValue(option, isOff ?? false, isVolatile || value === null ? null : value.toString());
    if (read === undefined) return false;
    if (option === 'volatile') delete this.#options['fsync'];
    if (option === 'fsync') delete this.#options['volatile'];
    this.#options[option] = read;
    return true;
  }

  read(option: RawOption): void {
    const { name } = option;
    if (layerNames.has(name)) {
      if (!this.#readLayers(option)) this.others.push(option);
    } else if (name === 'ro' || name === 'rw') {
      delete this.#options['readonlySuperblock'];
      if (name === 'ro') this.#options['readonlySuperblock'] = true;
    } else if (!this.#readOption(option)) this.others.push(option);
  }

  get layersApart(): boolean {
    return !this.#isList && this.#lowers.length > 0;
  }

  get options(): NamedOptions {
    const options: Record<string, unknown> = {
      ...this.#options,
      lowerdir: this.#lowers.map(fromBytes),
      datadir: this.#data.map(fromBytes),
    };
    for (const name of ['upperdir', 'workdir']) {
      const value = options[name];
      if (value !== undefined) options[name] = this.#readLayer(value as Buffer);
    }
    return options as unknown as NamedOptions;
  }
}

const layerNames: ReadonlySet<string> = new Set(['lowerdir', 'lowerdir+', 'datadir+', 'upperdir', 'workdir']);

function read(raw: readonly RawOption[], readLayer: (value: Buffer) => Path): Reading {
  const reader = new Reader(readLayer);
  for (const option of raw) reader.read(option);
  return { options: reader.options, others: reader.others, layersApart: reader.layersApart };
}

/** Reads options given to mount(2), from splitGiven. The last one counts if an option is there twice. */
export function readGiven(raw: readonly RawOption[]): Reading {
  return read(raw, (value) => fromBytes(unescapeLayer(value)));
}

/**
 * Reads options that the kernel shows, from splitShown or splitArray. The kernel shows the options that it was given,
 * without those that equal the module's default. An upperdir with backslashes can stand for two paths: `choose` chooses
 * one, and by default the likelier one.
 */
export function readShown(raw: readonly RawOption[], choose: Choose = ([likeliest]) => likeliest): Reading {
  return read(raw, (value) => {
    const [first, ...rest] = shownLayers(value);
    return choose([fromBytes(first), ...rest.map(fromBytes)]);
  });
}
