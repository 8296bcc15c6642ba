import java.math.BigInteger;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/** Work of the kinds that servers in Java do: collections, strings, calls through interfaces, exceptions, arithmetic. */
public final class Work {
    private interface Shape {
        long area(long x);
    }

    private record Square(long side) implements Shape {
        public long area(long x) {
            return side * side + x;
        }
    }

    private record Strip(long length, long width) implements Shape {
        public long area(long x) {
            return length * width ^ x;
        }
    }

    private static final class Spot implements Shape {
        public long area(long x) {
            return x >>> 3;
        }
    }

    private long state = 88172645463325252L;

    private long next() {
        state ^= state << 13;
        state ^= state >>> 7;
        state ^= state << 17;
        return state;
    }

    private long collections(int count) {
        Map<String, Integer> words = new HashMap<>();
        for (int i = 0; i < count; i++) {
            words.merge("word" + (next() & 1023), 1, Integer::sum);
        }
        long sum = 0;
        for (Map.Entry<String, Integer> word : new TreeMap<>(words).entrySet()) {
            sum = 31 * sum + word.getKey().hashCode() + word.getValue();
        }
        return sum;
    }

    private long sorting(int count) {
        List<Long> numbers = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            numbers.add(next() >>> 20);
        }
        return numbers.stream().filter(number -> (number & 1) == 0).sorted().mapToLong(Long::longValue)
            .reduce(1, (left, right) -> 31 * left + right);
    }

    private long calls(int count) {
        Shape[] shapes = {new Square(3), new Strip(4, 5), new Spot()};
        long sum = 0;
        for (int i = 0; i < count; i++) {
            sum += shapes[(int) (next() >>> 33) % shapes.length].area(sum);
        }
        return sum;
    }

    private long exceptions(int count) {
        long caught = 0;
        for (int i = 0; i < count; i++) {
            try {
                caught += Integer.parseInt((next() & 3) == 0 ? "none" : "7");
            } catch (NumberFormatException exception) {
                caught += exception.getMessage().length();
            }
        }
        return caught;
    }

    private double floating(int count) {
        double[] values = new double[256];
        for (int i = 0; i < values.length; i++) {
            values[i] = (next() >>> 11) * 0x1p-53;
        }
        for (int round = 0; round < count; round++) {
            for (int i = 1; i < values.length; i++) {
                values[i] = Math.sqrt(values[i] * values[i - 1] + 0.25) / (1 + values[i]);
            }
        }
        double sum = 0;
        for (double value : values) {
            sum += value;
        }
        return sum;
    }

    private int numbers(int bits) {
        BigInteger base = new BigInteger(Long.toHexString(next()).repeat(bits / 64), 16);
        BigInteger modulus = BigInteger.TWO.pow(bits).subtract(BigInteger.valueOf(189));
        return base.modPow(base.shiftRight(bits / 2), modulus).hashCode();
    }

    public static void main(String[] arguments) {
        int scale = Integer.parseInt(arguments[0]);
        Work work = new Work();
        StringBuilder report = new StringBuilder();
        for (int round = 0; round < scale; round++) {
            report.append(work.collections(15_000)).append(' ').append(work.sorting(8_000)).append(' ');
            report.append(work.calls(200_000)).append(' ').append(work.exceptions(1_500)).append(' ');
            report.append(work.floating(300)).append(' ').append(work.numbers(1024)).append('\n');
        }
        System.out.print(report);
    }
}
