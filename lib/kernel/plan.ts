/**
 * A plan: kernel calls in order, decided before the first is made. Building one touches nothing; it can be
 * printed (format.ts) and performed in one crossing into the addon (perform.ts).
 */
import type { Path } from '../paths.js';
import type { Call } from './calls.js';

/** A descriptor: the kernel's number, or that of an earlier step, from `Plan.add`. */
export type Descriptor = number;

/** A path or value; an array is put together when its step is reached, its numbers being descriptors. */
export type Text = Path | readonly (Path | Descriptor)[] | null;

/** What a step is about, for whoever explains its failure. */
export interface Subject {
  readonly role: 'lowerdir' | 'datadir' | 'upperdir' | 'workdir' | 'source' | 'target' | 'path' | 'namespace';
  /** Which of several, from 0. */
  readonly index?: number;
  readonly path: Path;
}

export interface StepOptions {
  /** Take the step back when a later one fails or the caller gives up. */
  readonly undo?: boolean;
  /** The descriptor that this step makes is the caller's. */
  readonly keep?: boolean;
  /** Performed only when the plan is taken back. */
  readonly later?: boolean;
  /** Errnos with which the step counts as done, four at most; or any. */
  readonly tolerate?: readonly number[] | 'any';
  /** Report the result, and so many bytes of what the call returned. */
  readonly output?: number;
  readonly subject?: Subject;
}

export interface Step {
  readonly call: Call;
  readonly args: readonly (Text | number)[];
  readonly options: StepOptions;
  /** Where its output begins among the plan's outputs; -1 without one. */
  readonly outputAt: number;
}

/** A descriptor argument from here on is that of the step with this bit taken away; as native/plan.h says. */
export const MADE_BY = 0x40000000;

/** Each output begins with the step's result in 8 bytes. */
export const RESULT_SIZE = 8;

const noOptions: StepOptions = {};

export class Plan {
  readonly #steps: Step[] = [];

  get steps(): readonly Step[] {
    return this.#steps;
  }

  outputsSize = 0;
  /** Performed on a thread made for it, since its steps change the working directory. */
  isOnOwnThread = false;
  /**
   * Performed in a child process made for it, which shares memory and descriptors with this one: its steps
   * change namespaces. What such a step has mounted elsewhere than on a kept descriptor goes with the child.
   */
  isInChild = false;

  /** Adds a step; the number returned stands for the descriptor that it makes. */
  add(call: Call, args: readonly (Text | number)[], options: StepOptions = noOptions): Descriptor {
    let outputAt = -1;
    if (options.output !== undefined) {
      outputAt = this.outputsSize;
      this.outputsSize += RESULT_SIZE + ((options.output + 7) & ~7);
    }
    this.#steps.push({ call, args, options, outputAt });
    return MADE_BY | (this.#steps.length - 1);
  }

  /** What stands for the descriptor that a step still to be added will make: the next one's is `following(0)`. */
  following(steps: number): Descriptor {
    return MADE_BY | (this.#steps.length + steps);
  }

  /** The step that makes this descriptor. */
  stepOf(descriptor: Descriptor): Step {
    return this.steps[descriptor ^ MADE_BY] as Step;
  }
}
