/**
 * Finds sentences that open with a clause (with `What`, `Whether`, `Where`, `Of` or `That`). Such a sentence makes its
 * reader wait for the subject. Looks at comments and at the text of documents; prints FILE:LINE and the sentence, and
 * fails if there is one.
 *
 *   node language.mjs [FILE…]   checks these files, or all of the repository
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** A question may open with such a word, and so may a sentence whose subject is `that`. */
const opener =
  /(?<=^|[.!?:]\)? |\| |^#+ |^- )(?:What|Whether|Where(?!as)|Of(?! course)|That(?! (?:is|was|does|has|can|may|would|takes|makes|means|happens|holds|costs)\b))\b[^.!?|]*(?:[.!|]|$)/g;

/** A comment of one line may leave out the capital. */
const firstWord = /^(?:what|whether|where(?!as)|of(?! course)) [^?]*$/g;

/** The texts of a file, each with the number of its first line. */
function textsOf(file) {
  const source = readFileSync(file, 'utf8');
  const lineOf = (index) => source.slice(0, index).split('\n').length;
  if (file.endsWith('.md')) {
    const prose = source.replace(/^```[\s\S]*?^```$/gm, (block) => block.replace(/[^\n]/g, ''));
    return Array.from(prose.matchAll(/^(?:[#|-].*|[^\n]+(?:\n(?![#|-]|\n)[^\n]+)*)/gm), ({ index, 0: text }) => ({
      line: lineOf(index),
      text: text.replace(/\s*\n\s*/g, ' '),
    }));
  }
  const start = /\.(?:gyp|sh)$|(?:^|\/)(?:run|boot)$/.test(file) ? '#' : '//';
  const marks = start === '#' ? /^#+ ?/ : /^(?:\/\*\*?|\*\/?|\/\/) ?/;
  const texts = [];
  let current;
  let isBlock = false;
  source.split('\n').forEach((line, i) => {
    const trimmed = line.trim();
    const opens = start === '//' && trimmed.startsWith('/*');
    const inline = trimmed.startsWith(start) ? undefined : /(?:^|[;,{}()\]] +)(\/\/|#) (.*)$/.exec(trimmed);
    isBlock ||= opens;
    if (isBlock || trimmed.startsWith(start)) {
      const text = trimmed
        .replace(marks, '')
        .replace(/\s*\*\/$/, '')
        .trim();
      // An example or a list begins anew, and so does a tag.
      if (current === undefined || opens || text === '' || /^(?:-|@|\d\.)/.test(text)) {
        current = { line: i + 1, text };
        texts.push(current);
      } else current.text += `${current.text === '' ? '' : ' '}${text}`;
      if (trimmed.endsWith('*/')) isBlock = false;
    } else {
      current = undefined;
      if (inline?.[1] === start) texts.push({ line: i + 1, text: inline[2] });
    }
  });
  return texts;
}

const known = /\.(?:ts|mjs|cjs|cc|h|c|gyp|md|go)$|^\.ci\/run$|\/boot$/;
const named = process.argv.slice(2);
const tracked = () =>
  execFileSync('git', ['ls-files', '-z', '-co', '--exclude-standard'], { encoding: 'utf8' }).split('\0');
const files =
  named.length > 0 ? named : tracked().filter((file) => known.test(file) && !file.startsWith('docs/reference/'));

let found = 0;
for (const file of files) {
  for (const { line, text } of textsOf(file)) {
    for (const [sentence] of [...text.matchAll(opener), ...text.matchAll(firstWord)]) {
      found++;
      console.log(`${file}:${line}: ${sentence.trim()}`);
    }
  }
}
if (found > 0) {
  console.log(
    `\n${found} sentences open with a clause. Begin with the subject: who does what, then under which condition.`,
  );
  process.exitCode = 1;
}
