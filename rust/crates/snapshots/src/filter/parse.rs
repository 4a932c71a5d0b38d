//! The grammar of filters.
//!
//! ```text
//! filter    = [ selector *( "," selector ) ]
//! selector  = path [ operator value ]
//! path      = field *( "." field )
//! field     = 1*( letter / digit / "_" ) / quoted      ; ASCII
//! operator  = "==" / "!=" / "~="
//! value     = quoted / run
//! run       = printable characters but no "," and no space; the first is none of " / | . = ! ~
//! quoted    = '"' *( character / escape ) '"'   ; the value of "~=" also between / / and | |
//! ```
//!
//! White space may stand before a field, an operator and a value, as containerd's scanner has it.
//! Unlike there, invisible format characters (Unicode category Cf) need no quotes. Escapes are
//! those of Go: `\a \b \f \n \r \t \v \\`, the quote itself, `\ooo`, `\xhh`, `\uhhhh` and
//! `\Uhhhhhhhh`.

use super::{Field, Selector, Test, beginning, regex};
use crate::error::{Error, Result};

pub(super) fn filter(input: &str) -> Result<Vec<Selector>> {
    let mut parser = Parser { input, at: 0 };
    let mut selectors = Vec::new();
    if input.is_empty() {
        return Ok(selectors);
    }
    loop {
        selectors.push(parser.selector()?);
        match parser.next() {
            None => return Ok(selectors),
            Some(',') => {}
            Some(found) => {
                return Err(parser.error(
                    parser.at - found.len_utf8(),
                    "there should be a comma or the end",
                ));
            }
        }
    }
}

struct Parser<'a> {
    input: &'a str,
    /// Where the next character is, in bytes.
    at: usize,
}

impl<'a> Parser<'a> {
    fn selector(&mut self) -> Result<Selector> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.field()?);
        }
        let field = Field::from_path(&path);
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector {
                field,
                test: Test::Present,
            });
        }
        self.skip_space();
        let at = self.at;
        let test = match self.run(is_operator) {
            "==" => Test::Equal(self.value(&['"'])?),
            "!=" => Test::NotEqual(self.value(&['"'])?),
            "~=" => Test::Matches(regex(&self.value(&['"', '/', '|'])?)?),
            _ => return Err(self.error(at, "there should be one of the operators == != ~=")),
        };
        Ok(Selector { field, test })
    }

    fn field(&mut self) -> Result<String> {
        self.skip_space();
        let at = self.at;
        if self.peek() == Some('"') {
            return self.quoted();
        }
        match self.run(|c| c.is_ascii_alphanumeric() || c == '_') {
            "" => Err(self.error(
                at,
                "there should be the name of a field, in double quotes if it has other characters \
                                      than A-Z a-z 0-9 and _",
            )),
            name => Ok(name.to_owned()),
        }
    }

    fn value(&mut self, quotes: &[char]) -> Result<String> {
        self.skip_space();
        match self.peek() {
            Some(quote) if quotes.contains(&quote) => self.quoted(),
            Some('/' | '|') => Err(self.error(
                self.at,
                "only the values of ~= can be quoted like this, others want \"",
            )),
            Some(first) if is_value(first) && first != '.' && !is_operator(first) => {
                Ok(self.run(is_value).to_owned())
            }
            _ => Err(self.error(
                self.at,
                "there should be a value, in double quotes if it begins like this",
            )),
        }
    }

    fn quoted(&mut self) -> Result<String> {
        let start = self.at;
        let quote = self.next();
        let mut bytes = Vec::new();
        loop {
            let at = self.at;
            match self.next() {
                None | Some('\n') => return Err(self.error(start, "this quote has no end")),
                end if end == quote => break,
                Some('\\') => self.escape(at, quote, &mut bytes)?,
                Some(other) => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        // \x and \ooo give bytes, which need not be text. No field has such a value.
        String::from_utf8(bytes)
            .map_err(|_| self.error(start, "this is not UTF-8 once its escapes are resolved"))
    }

    fn escape(&mut self, at: usize, quote: Option<char>, bytes: &mut Vec<u8>) -> Result<()> {
        let wrong = "there is no such escape";
        let byte = match self.next() {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0C,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0B,
            Some('\\') => b'\\',
            Some('x') => self.number(at, 16, 2)? as u8,
            Some('0'..='7') => {
                self.at -= 1;
                u8::try_from(self.number(at, 8, 3)?).map_err(|_| self.error(at, wrong))?
            }
            Some(wide @ ('u' | 'U')) => {
                let code = self.number(at, 16, if wide == 'u' { 4 } else { 8 })?;
                let character = char::from_u32(code).ok_or_else(|| self.error(at, wrong))?;
                bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            same if same.is_some() && same == quote => {
                // A quote is one of " / | and so one byte.
                same.map_or(0, |same| same as u8)
            }
            _ => return Err(self.error(at, wrong)),
        };
        bytes.push(byte);
        Ok(())
    }

    /// A number of exactly this many digits; eight hexadecimal ones fit in u32.
    fn number(&mut self, at: usize, radix: u32, digits: usize) -> Result<u32> {
        let mut number = 0;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(radix));
            number = number * radix
                + digit.ok_or_else(|| self.error(at, "this escape has too few digits"))?;
        }
        Ok(number)
    }

    fn peek(&self) -> Option<char> {
        self.input[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn run(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let rest = &self.input[self.at..];
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn skip_space(&mut self) {
        self.run(char::is_whitespace);
    }

    fn error(&self, offset: usize, reason: &'static str) -> Error {
        Error::FilterSyntax {
            filter: beginning(self.input),
            offset,
            reason,
        }
    }
}

fn is_operator(c: char) -> bool {
    matches!(c, '=' | '!' | '~')
}

fn is_value(c: char) -> bool {
    c != ',' && !c.is_whitespace() && !c.is_control()
}
