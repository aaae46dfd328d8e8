// Reads the results of tests from TAP, as ava writes it.

/** A line `ok 1 - TITLE` or `not ok 1 - TITLE`, with `# SKIP` at the end of a test that was skipped. */
const RESULT = /^(not )?ok \d+ - (.*?)( # SKIP)?$/;

/** A line before the results of one surrounding of several, such as a kernel. */
const PLACE = /^=== (\S+)$/;

/** A skip that is meant: the machine or the kernel lacks a feature. */
const MEANT = /\((needs .+, which this machine lacks|in npm run test:\w+)\)$/;

/**
 * Takes the lines of a step one by one and collects its results.
 *
 * A test's title begins with its file where the step has several: `overlay › paths › TITLE`. A title without one is that
 * of a crash: a file that ended by a signal, an error outside of a test, a report of a sanitizer.
 */
export class TapReader {
  passed = 0;
  /** The titles of skipped tests, those without a good reason in `unmeant`. */
  skipped = [];
  unmeant = [];
  /** Each failure: { title, file, name, place, message }. A crash has no file and no name. */
  failures = [];
  /** How many runs have begun, less those whose plan has come, at their end: ava itself can die. */
  unended = 0;
  #files;
  #place;
  #last;

  /** @param {string[]} files the test files of the step, compiled */
  constructor(files) {
    this.#files = files;
  }

  /** Returns true for a line that only says that a test has passed. */
  read(line) {
    const [, place] = PLACE.exec(line) ?? [];
    if (place !== undefined) this.#place = place;
    if (line === 'TAP version 13') this.unended++;
    if (/^1\.\.\d+$/.test(line)) this.unended--;
    const [, not, title, skip] = RESULT.exec(line) ?? [];
    if (title === undefined) {
      this.#readMessage(line);
      return false;
    }
    this.#last = undefined;
    if (not !== undefined) {
      this.#last = { title, place: this.#place, ...this.#find(title) };
      this.failures.push(this.#last);
      return false;
    }
    if (skip === undefined) this.passed++;
    else (MEANT.test(title) ? this.skipped : this.unmeant).push(title);
    return skip === undefined;
  }

  /** Keeps the first line of a failure's message, which YAML may put into the next line, or else where it failed. */
  #readMessage(line) {
    const failure = this.#last;
    if (failure === undefined || failure.message) return;
    const [, key, value] = /^ +(message|assertion|at): (.*)$/.exec(line) ?? [];
    if (value === "''" || value === '""') return;
    if (key !== undefined) failure.message = /^[>|]-?$/.test(value) ? '' : value;
    else if (failure.message === '') failure.message = line.trim();
  }

  /** ava leaves out the directories that all files of a step have in common. */
  #find(title) {
    if (this.#files.length === 1) return { file: this.#files[0], name: title };
    const found = this.#files
      .flatMap((file) => beginnings(file).map((beginning) => ({ file, beginning })))
      .filter(({ beginning }) => title.startsWith(beginning))
      .sort((one, other) => other.beginning.length - one.beginning.length)[0];
    return found && { file: found.file, name: title.slice(found.beginning.length) };
  }
}

/** `dist-test/test/overlay/paths.test.js` gives `overlay › paths › ` and `paths › `. */
function beginnings(file) {
  const words = file
    .replace(/^dist-test\/test\//, '')
    .replace(/\.test\.js$/, '')
    .split('/');
  return words.map((_, i) => `${words.slice(i).join(' › ')} › `);
}
