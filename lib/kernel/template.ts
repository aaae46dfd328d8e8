/**
 * Templates for plans that differ only in a few texts. A template is encoded once. For each plan, the block is copied
 * and the texts are written into it, which takes a fraction of the time that building and encoding the steps takes.
 */
import { type Encoded, encodeAs, type Pattern, toPattern } from './encode.js';
import { Plan, type Step } from './plan.js';

export class Template {
  readonly #pattern: Pattern;
  readonly #outputsSize: number;

  private constructor(pattern: Pattern, outputsSize: number) {
    this.#pattern = pattern;
    this.#outputsSize = outputsSize;
  }

  /**
   * Makes a template from a plan. Plans made from it have other texts in the places of these. Returns undefined unless
   * each text is an argument, and part of no other.
   */
  static of(plan: Plan, texts: readonly string[]): Template | undefined {
    const pattern = toPattern(plan, texts);
    return pattern && new Template(pattern, plan.outputsSize);
  }

  /**
   * Makes a plan with these texts. `build` makes the same plan step by step, for callers that read the steps to explain
   * a failure.
   */
  fill(texts: readonly string[], build: () => Plan): Plan {
    return new FilledPlan(this.#pattern, texts, this.#outputsSize, build);
  }
}

export class FilledPlan extends Plan {
  readonly #pattern: Pattern;
  readonly #texts: readonly string[];
  readonly #build: () => Plan;
  #built: Plan | undefined;

  constructor(pattern: Pattern, texts: readonly string[], outputsSize: number, build: () => Plan) {
    super();
    this.outputsSize = outputsSize;
    this.#pattern = pattern;
    this.#texts = texts;
    this.#build = build;
  }

  override get steps(): readonly Step[] {
    this.#built ??= this.#build();
    return this.#built.steps;
  }

  encode(): Encoded {
    return encodeAs(this.#pattern, this.#texts);
  }
}
