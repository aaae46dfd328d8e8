/** A row of the failures: a mount that is refused, the reason, and the remedy. */
import type { ExecutionContext } from 'ava';
import type { Feature } from '../../support/index.js';
import type { Given, Refusal } from '../rows/row.js';
import type { At } from '../rows/setup.js';

/** A step; an object that it returns has what paths are to hold in the place of `{name}`. */
export type Step = (at: At, t: ExecutionContext) => unknown;

export interface FailureRow {
  readonly title: string;
  readonly needs?: readonly Feature[];
  /** A feature that only some machines have; elsewhere the row is left out. */
  readonly where?: Feature;
  readonly on?: 'tmpfs' | 'disk';
  readonly view?: boolean;
  readonly setup: readonly Step[];
  readonly options: Given;
  readonly expect: { readonly error: Refusal };
  /** The advice of the hint, done to the directories; the mount then succeeds. */
  readonly remedy?: readonly Step[];
  /** The options that the hint asks for; the mount then succeeds. */
  readonly instead?: Given;
  /** Default: as it comes, and by mount(2). */
  readonly ways?: readonly string[];
}

export const refused = (
  title: string,
  options: Given,
  expect: FailureRow['expect'],
  setup: readonly Step[] = [],
  mend: Partial<Omit<FailureRow, 'title' | 'options' | 'expect' | 'setup'>> = {},
): FailureRow => ({ title, options, expect, setup, ...mend });
