/** containerd's rules over a plain map, for comparison. */

export interface ModelRecord {
  readonly kind: 'active' | 'view' | 'committed';
  readonly parent: string;
  readonly labels: Readonly<Record<string, string>>;
}

export type Outcome = { readonly code: string } | { readonly value: unknown };

const refuse = (code: string): Outcome => ({ code: `ERR_SNAPSHOT_${code}` });
const done: Outcome = { value: undefined };

type Options = { readonly labels?: Record<string, string>; readonly parent?: string } | undefined;

export class Model {
  readonly records: Map<string, ModelRecord>;

  constructor(records: Iterable<[string, ModelRecord]> = []) {
    this.records = new Map(records);
  }

  perform(verb: string, args: readonly unknown[]): Outcome {
    return (this[verb as keyof Model] as (...args: readonly unknown[]) => Outcome).call(this, ...args);
  }

  #create(kind: 'active' | 'view', key: string, parent = '', options: Options = {}): Outcome {
    if (parent !== '') {
      const above = this.records.get(parent);
      if (above === undefined) return refuse('NOT_FOUND');
      if (above.kind !== 'committed') return refuse('INVALID_ARGUMENT');
    }
    if (this.records.has(key)) return refuse('ALREADY_EXISTS');
    this.records.set(key, { kind, parent, labels: options.labels ?? {} });
    return done;
  }

  prepare(key: string, parent?: string, options?: Options): Outcome {
    return this.#create('active', key, parent, options);
  }

  view(key: string, parent?: string, options?: Options): Outcome {
    return this.#create('view', key, parent, options);
  }

  mounts(key: string): Outcome {
    const record = this.records.get(key);
    if (record === undefined) return refuse('NOT_FOUND');
    return record.kind === 'committed' ? refuse('FAILED_PRECONDITION') : done;
  }

  commit(key: string, { name, labels = {}, parent = '' }: NonNullable<Options> & { name: string }): Outcome {
    const record = this.records.get(key);
    if (record === undefined) return refuse('NOT_FOUND');
    if (this.records.has(name)) return refuse('ALREADY_EXISTS');
    if (record.kind !== 'active') return refuse('FAILED_PRECONDITION');
    if (parent !== '' && record.parent !== '' && parent !== record.parent) return refuse('INVALID_ARGUMENT');
    const above = record.parent || parent;
    if (above !== '') {
      const found = this.records.get(above);
      if (found === undefined) return refuse('NOT_FOUND');
      if (found.kind !== 'committed') return refuse('FAILED_PRECONDITION');
    }
    this.records.delete(key);
    this.records.set(name, { kind: 'committed', parent: above, labels });
    return done;
  }

  remove(key: string): Outcome {
    if (!this.records.has(key)) return refuse('NOT_FOUND');
    if ([...this.records.values()].some(({ parent }) => parent === key)) return refuse('FAILED_PRECONDITION');
    this.records.delete(key);
    return done;
  }

  setLabels(key: string, labels: Record<string, string>, { replace }: { replace: boolean }): Outcome {
    const record = this.records.get(key);
    if (record === undefined) return refuse('NOT_FOUND');
    const all = Object.entries({ ...(replace ? {} : record.labels), ...labels });
    this.records.set(key, { ...record, labels: Object.fromEntries(all.filter(([, value]) => value !== '')) });
    return done;
  }

  stat(key: string): Outcome {
    return this.records.has(key) ? done : refuse('NOT_FOUND');
  }

  usage(key: string): Outcome {
    return this.stat(key);
  }

  cleanup(): Outcome {
    return done;
  }
}

const NAMES = 24;

/** Returns a random verb and its arguments. */
export function chooseStep(random: (below: number) => number): [verb: string, args: unknown[]] {
  // Names of all lengths around the one from which keys are digests.
  const name = () => {
    const i = random(NAMES);
    return i % 6 === 5 ? `${'n'.repeat(476 + (i >> 2))}${i}` : `name ${i}`;
  };
  const maybe = <T>(make: () => T, none: T): T => (random(3) > 0 ? make() : none);
  const labels = () => Object.fromEntries(Array.from({ length: random(3) }, () => [`l${random(4)}`, `${random(5)}`]));
  const options = maybe<object | undefined>(() => ({ labels: labels() }), undefined);
  switch (random(12)) {
    case 0:
    case 1:
      return ['prepare', [name(), maybe(name, ''), options]];
    case 2:
      return ['view', [name(), maybe(name, ''), options]];
    case 3:
    case 4:
      return ['commit', [name(), { name: name(), ...options, parent: random(3) === 0 ? name() : '' }]];
    case 5:
    case 6:
    case 7:
      return ['remove', [name()]];
    case 8:
      return [
        'setLabels',
        [name(), { ...labels(), ...maybe(() => ({ [`l${random(4)}`]: '' }), {}) }, { replace: random(2) === 0 }],
      ];
    case 9:
      return ['stat', [name()]];
    case 10:
      return ['mounts', [name()]];
    default:
      return random(4) === 0 ? ['cleanup', []] : ['usage', [name()]];
  }
}
