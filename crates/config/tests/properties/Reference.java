// Writes cases.jsonl: inputs, and what java.util.Properties reads from them, in file order.
//
//     java tests/properties/Reference.java > tests/properties/cases.jsonl
//
// A case is {"in": bytes as the characters U+0000 to U+00FF, "out": [[key, value], ...]}; "out" is
// null where the reference throws, and where a string holds half a surrogate pair, which has no
// UTF-8. Bytes that are valid UTF-8 go through a UTF-8 reader, others through the byte stream, which
// Java reads as Latin-1. Made with OpenJDK 17; the seed is fixed.

import java.io.ByteArrayInputStream;
import java.io.StringReader;
import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.Random;

public class Reference {
    private static final String[] BY_HAND = {
        "",
        "engine=Python\noption.model_id=facebook/bart-large\noption.task=feature-extraction\n",
        "engine = Python\r\noption.task : text-generation\r\nbatch_size\t4\r\n",
        "a=1\ra=2\n\n\ra=3",
        "  # comment\n\t! another\nkey=value # not a comment\n",
        "# ends in a backslash \\\nk=v\n",
        "k=one,\\\n   two,\\\n\t three\n",
        "k=one\\\\\nnext=2\n",
        "k=one\\\\\\\nnext=2\n",
        "k=trailing \t \nl=comma,\n",
        "k\\ with\\=escapes\\:x = v\\ \\\\w \\t\\n\\r\\f\\q\n",
        "caf\\u00e9=\\u20ac \\uD83D\\uDE00 \\u0041\n",
        "caf\u00e9=na\u00efve \u20ac\n",
        "k=\\u00e\n",
        "k=\\uzzzz\n",
        "k=\\u12",
        "\\uD83D=lone\n",
        "k=\\uDE00\\uD83D\n",
        "k",
        "k=",
        "=v",
        ":v",
        "=",
        "k==v",
        "k= =v",
        "k = : v",
        "k : = v",
        "k   v=w",
        "k\fv\f",
        "\\",
        "\\\n",
        "\\\r\n",
        "\\\r",
        "\\\n#x\nk=v",
        "\\\n   ",
        "k\\",
        "k=v\\",
        "k=v\\\n",
        "k=v\\\n\n\nl=w",
        "k=v\\\n#not a comment\nl=w",
        "k=\\\n\\\n\\\nv",
        "k\\\n=v",
        "k\\\n  =  \\\n  v",
        "!\n#\nk v",
        "k\\u003dx=y",
        "k=\\u0020v\\u0020",
        "\u00a0k=v\u00a0",
        "k=v\u0000w",
        "k\u2028=v\u0085w",
    };

    private static final String[] PIECES = {
        "a", "b", "key", "value", "1", "=", "=", ":", " ", " ", "\t", "\f", "\n", "\n", "\n", "\r",
        "\r\n", "\\", "\\", "\\\n", "\\\r\n", "\\\n  ", "#", "!", "\\u0041", "\\u00e9", "\\u", "\\n",
        "\\=", "\\:", "\\ ", "\\#", "\\uD83D\\uDE00", "\\ud800", ".", ",", "\u00e9", "\u20ac", "\"",
    };

    public static void main(String[] args) {
        for (String text : BY_HAND) {
            print(text.getBytes(StandardCharsets.UTF_8));
        }
        print(new byte[] {'k', '=', (byte) 0xe9, '\n', (byte) 0xff, ' ', (byte) 0x80});
        print(new byte[] {'k', '=', (byte) 0xc3});
        Random random = new Random(20240607);
        for (int n = 0; n < 700; n++) {
            StringBuilder text = new StringBuilder();
            int length = 1 + random.nextInt(24);
            for (int i = 0; i < length; i++) {
                String piece = PIECES[random.nextInt(PIECES.length)];
                // Bad escapes end a file early, so they are kept rare.
                boolean bad = piece.equals("\\u") || piece.equals("\\ud800");
                text.append(bad && random.nextInt(8) > 0 ? "x" : piece);
            }
            boolean latin1 = random.nextInt(8) == 0;
            String made = text.toString();
            print(made.getBytes(latin1 ? StandardCharsets.ISO_8859_1 : StandardCharsets.UTF_8));
        }
    }

    private static void print(byte[] input) {
        List<String[]> pairs = read(input);
        StringBuilder line = new StringBuilder("{\"in\":");
        quote(line, new String(input, StandardCharsets.ISO_8859_1));
        line.append(",\"out\":");
        if (pairs == null) {
            line.append("null");
        } else {
            line.append('[');
            for (int i = 0; i < pairs.size(); i++) {
                line.append(i > 0 ? ",[" : "[");
                quote(line, pairs.get(i)[0]);
                line.append(',');
                quote(line, pairs.get(i)[1]);
                line.append(']');
            }
            line.append(']');
        }
        System.out.println(line.append('}'));
    }

    private static List<String[]> read(byte[] input) {
        List<String[]> pairs = new ArrayList<>();
        Properties properties = new Properties() {
            @Override
            public synchronized Object put(Object key, Object value) {
                pairs.add(new String[] {(String) key, (String) value});
                return super.put(key, value);
            }
        };
        try {
            String text = utf8(input);
            if (text != null) {
                properties.load(new StringReader(text));
            } else {
                properties.load(new ByteArrayInputStream(input));
            }
        } catch (IllegalArgumentException e) {
            return null;
        } catch (java.io.IOException e) {
            throw new IllegalStateException(e);
        }
        for (String[] pair : pairs) {
            if (hasLoneSurrogate(pair[0]) || hasLoneSurrogate(pair[1])) {
                return null;
            }
        }
        return pairs;
    }

    private static String utf8(byte[] input) {
        try {
            return StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(input)).toString();
        } catch (CharacterCodingException e) {
            return null;
        }
    }

    private static boolean hasLoneSurrogate(String text) {
        return text.codePoints().anyMatch(c -> c >= 0xD800 && c <= 0xDFFF);
    }

    private static void quote(StringBuilder out, String text) {
        out.append('"');
        for (char c : text.toCharArray()) {
            if (c == '"' || c == '\\') {
                out.append('\\').append(c);
            } else if (c >= ' ' && c < 127) {
                out.append(c);
            } else {
                out.append(String.format("\\u%04x", (int) c));
            }
        }
        out.append('"');
    }
}
