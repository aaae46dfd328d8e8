/** `overlayfs completion`: scripts that complete commands, flags and the words of flags, from the descriptions. */
import { type Command, type Commands, flagsOfCommand, type Outcome, type Parsed, summaryOf } from './command.js';
import type { Flag } from './flags.js';
import { aboutFlag } from './parser.js';
import { spellingOf } from './spelling.js';
import { unknownWord } from './usage-error.js';

const longOf = (flag: Flag): string[] =>
  flag.hasNegative ? [`--${flag.spelling}`, `--no-${flag.spelling}`] : [`--${flag.spelling}`];

/** The first words of the commands, then the second ones of each first word. */
function stepsOf(commands: Commands): Map<string, string[]> {
  const steps = new Map<string, string[]>([['', ['help']]]);
  const add = (start: string, word: string) => steps.set(start, [...new Set([...(steps.get(start) ?? []), word])]);
  for (const [name, { words = [] }] of Object.entries(commands)) {
    const [first = '', second] = name.split(' ');
    add('', first);
    for (const word of second === undefined ? words : [second]) add(first, word);
  }
  return steps;
}

/** Returns the text without what a quoted description of these shells cannot hold. */
const plainText = (text: string): string => text.replaceAll(/['[\]:\\$`"]/g, '');
const summary = (command: Command): string => plainText(summaryOf(command));

function bash(commands: Commands): string {
  const values = new Map<string, string>();
  const paths = new Set<string>();
  for (const flag of Object.values(commands).flatMap(flagsOfCommand)) {
    if (flag.kind === 'word') values.set(`--${flag.spelling}`, flag.words.join(' '));
    else if (flag.kind !== 'boolean') paths.add(`--${flag.spelling}`);
  }
  const steps = [...stepsOf(commands)].map(([start, words]) => `    '${start}') words='${words.join(' ')}' ;;`);
  const flags = Object.entries(commands).map(
    ([name, command]) => `    '${name} '*) words='${flagsOfCommand(command).flatMap(longOf).join(' ')}' ;;`,
  );
  return `_overlayfs() {
  local current=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} words=''
  local line="\${COMP_WORDS[*]:1:COMP_CWORD-1}"
  case "$before" in
${[...values].map(([flag, words]) => `    ${flag}) words='${words}' ;;`).join('\n')}
    ${[...paths].join('|')}) return ;;
  esac
  [ -n "$words" ] || case "$line" in
${steps.join('\n')}
  esac
  [[ $current != -* ]] || case "$line " in
${flags.join('\n')}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _overlayfs overlayfs
`;
}

function zsh(commands: Commands): string {
  const [first = [], ...more] = [...stepsOf(commands)].map(([start, words]) => ({ start, words }));
  const specs = (command: Command): string[] =>
    flagsOfCommand(command).flatMap((flag) =>
      longOf(flag).map((long) => {
        const value = { boolean: '', word: `:word:(${flag.words.join(' ')})`, path: ':path:_files' }[
          flag.kind as 'word'
        ];
        const about = plainText(aboutFlag(flag, spellingOf(command)));
        return `'${flag.isList ? '*' : ''}${long}[${about}]${value ?? ':value:'}'`;
      }),
    );
  const cases = Object.entries(commands).map(([name, command]) => {
    const rest = command.runsProgram ? "'*::program:_normal'" : "'*:path:_files'";
    return `    '${name} '*) _arguments -S ${specs(command).join(' ')} ${rest} ;;`;
  });
  return `#compdef overlayfs
_overlayfs() {
  local line="\${(j: :)words[2,CURRENT-1]}"
  case "$line" in
    '') compadd ${'words' in first ? first.words.join(' ') : ''}; return ;;
${more.map(({ start, words }) => `    '${start}') compadd ${words.join(' ')}; return ;;`).join('\n')}
  esac
  case "$line " in
${cases.join('\n')}
  esac
}
if [ "$funcstack[1]" = _overlayfs ]; then _overlayfs "$@"; else compdef _overlayfs overlayfs; fi
`;
}

function fish(commands: Commands): string {
  const lines = [...stepsOf(commands)].map(([start, words]) => {
    const when = start === '' ? '__fish_use_subcommand' : `__fish_seen_subcommand_from ${start}`;
    return `complete -c overlayfs -f -n '${when}' -a '${words.join(' ')}'`;
  });
  for (const [name, command] of Object.entries(commands)) {
    const when = name
      .split(' ')
      .map((word) => `__fish_seen_subcommand_from ${word}`)
      .join('; and ');
    lines.push(`complete -c overlayfs -n __fish_use_subcommand -a ${name.split(' ')[0]} -d '${summary(command)}'`);
    for (const flag of flagsOfCommand(command)) {
      const value =
        { boolean: '', word: ` -x -a '${flag.words.join(' ')}'`, path: ' -r' }[flag.kind as 'word'] ?? ' -x';
      const about = plainText(aboutFlag(flag, spellingOf(command)));
      for (const long of longOf(flag)) {
        lines.push(`complete -c overlayfs -n '${when}' -l ${long.slice(2)}${value} -d '${about}'`);
      }
    }
  }
  return `${lines.join('\n')}\n`;
}

const shells = { bash, zsh, fish };
const names = Object.keys(shells);

/** Returns the command; it reads the table of the commands when it runs, which has this command too. */
export const completionOf = (commands: () => Commands): Command<object> => ({
  about: 'Prints a script that completes the commands and flags in a shell.',
  operands: '<SHELL>',
  forms: [names.join('|')],
  words: names,
  notes: 'zsh and fish load it from a directory of theirs, bash from ~/.bashrc.',
  examples: [
    'overlayfs completion bash >> ~/.bashrc',
    'overlayfs completion zsh > "$HOME/.zfunc/_overlayfs"',
    'overlayfs completion fish > ~/.config/fish/completions/overlayfs.fish',
  ],
  async run({ operands: [shell] }: Parsed<object>): Promise<Outcome> {
    if (!Object.hasOwn(shells, shell as string)) throw unknownWord('there is no script for', String(shell), names);
    const script = shells[shell as keyof typeof shells](commands());
    return { text: script, json: { script } };
  },
});
