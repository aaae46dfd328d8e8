/** The promise form and the synchronous form of each operation, so that one test serves both. */

import * as overlayfs from 'overlayfs';

type Library = typeof overlayfs;

/** Names of functions that have both forms. */
type Name = { [N in keyof Library]: `${N}Sync` extends keyof Library ? N : never }[keyof Library];

/** Each of these returns a promise, also where it calls the synchronous form. */
export interface Form {
  readonly form: 'promise' | 'synchronous form';
  /** The end of the names of this form's functions. */
  readonly suffix: '' | 'Sync';
  /** Returns a function of the library. */
  of<N extends Name>(name: N): Library[N];
  /** Returns a method of a mount. */
  method<M extends overlayfs.Mount, N extends keyof M>(mount: M, name: N): M[N];
}

type Call = (...args: unknown[]) => unknown;

const makeForm = (form: Form['form'], suffix: Form['suffix']): Form => {
  const asPromise = (owner: object, name: PropertyKey): never => {
    const call = (owner as Readonly<Record<string, Call>>)[`${String(name)}${suffix}`] as Call;
    return (async (...args: unknown[]) => call.apply(owner, args)) as never;
  };
  return { form, suffix, of: (name) => asPromise(overlayfs, name), method: asPromise };
};

export const forms: readonly Form[] = [makeForm('promise', ''), makeForm('synchronous form', 'Sync')];
